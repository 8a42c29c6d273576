_base_ = [
    "mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py",
    "../_base_/gram_backbones.py",
]
model = dict(
    # The stock C4 detectors take Caffe's images: BGR, std 1.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        _delete_=True,
        type="AOGNet",
        variant="aognet_12m_released",
        out_indices=(2,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
    ),
    rpn_head=dict(in_channels=512, feat_channels=512),
    roi_head=dict(
        shared_head=dict(
            _delete_=True,
            type="AOGStage",
            variant="aognet_12m_released",
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
        ),
        bbox_roi_extractor=dict(out_channels=512),
        bbox_head=dict(in_channels=824),
        mask_head=dict(in_channels=824),
    ),
)
