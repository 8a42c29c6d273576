_base_ = [
    "mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py",
    "../_base_/gram_backbones.py",
]
model = dict(
    type="GramMaskRCNN",  # routers pool the unpadded part of each image
    # The stock C4 detectors take Caffe's images: BGR, std 1.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        _delete_=True,
        type="DGNet",
        variant="dgnet_r50",
        out_indices=(2,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        start_as_base=True,  # there are no DG-Net weights: start near the base network's
    ),
    roi_head=dict(
        shared_head=dict(
            _delete_=True,
            type="DGStage",
            variant="dgnet_r50",
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
            start_as_base=True,
        ),
    ),
)
