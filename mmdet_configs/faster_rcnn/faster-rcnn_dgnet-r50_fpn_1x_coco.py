_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/gram_backbones.py",
]
model = dict(
    type="GramFasterRCNN",  # routers pool the unpadded part of each image
    backbone=dict(
        _delete_=True,
        type="DGNet",
        variant="dgnet_r50",
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        start_as_base=True,  # there are no DG-Net weights: start near the base network's
    ),
)
