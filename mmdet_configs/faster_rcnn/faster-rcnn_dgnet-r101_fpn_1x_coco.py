_base_ = "./faster-rcnn_dgnet-r50_fpn_1x_coco.py"
model = dict(backbone=dict(variant="dgnet_r101"))
