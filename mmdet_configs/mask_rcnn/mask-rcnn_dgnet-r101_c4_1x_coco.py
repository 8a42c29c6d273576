_base_ = "./mask-rcnn_dgnet-r50_c4_1x_coco.py"
model = dict(
    backbone=dict(variant="dgnet_r101"),
    roi_head=dict(shared_head=dict(variant="dgnet_r101")),
)
