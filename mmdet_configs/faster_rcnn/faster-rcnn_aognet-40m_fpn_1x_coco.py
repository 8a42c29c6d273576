_base_ = "./faster-rcnn_aognet-12m_fpn_1x_coco.py"
model = dict(
    backbone=dict(variant="aognet_40m_released"),
    neck=dict(in_channels=[224, 448, 896, 1400]),
)
