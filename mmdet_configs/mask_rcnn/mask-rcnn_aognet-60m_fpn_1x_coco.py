_base_ = "./mask-rcnn_aognet-12m_fpn_1x_coco.py"
model = dict(
    backbone=dict(variant="aognet_60m"),
    neck=dict(in_channels=[256, 512, 1160, 1400]),
)
