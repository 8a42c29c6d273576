_base_ = "./mask-rcnn_aognet-12m_c4_1x_coco.py"
model = dict(
    backbone=dict(variant="aognet_60m"),
    rpn_head=dict(in_channels=1160, feat_channels=1160),
    roi_head=dict(
        shared_head=dict(variant="aognet_60m"),
        bbox_roi_extractor=dict(out_channels=1160),
        bbox_head=dict(in_channels=1400),
        mask_head=dict(in_channels=1400),
    ),
)
