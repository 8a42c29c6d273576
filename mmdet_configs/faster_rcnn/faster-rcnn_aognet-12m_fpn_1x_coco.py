_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/gram_backbones.py",
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="AOGNet",
        variant="aognet_12m_released",
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
    ),
    neck=dict(in_channels=[128, 256, 512, 824]),
)
