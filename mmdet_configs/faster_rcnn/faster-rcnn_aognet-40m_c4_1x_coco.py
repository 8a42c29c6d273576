_base_ = "./faster-rcnn_aognet-12m_c4_1x_coco.py"
model = dict(
    backbone=dict(variant="aognet_40m_released"),
    rpn_head=dict(in_channels=896, feat_channels=896),
    roi_head=dict(
        shared_head=dict(variant="aognet_40m_released"),
        bbox_roi_extractor=dict(out_channels=896),
        bbox_head=dict(in_channels=1400),
    ),
)
