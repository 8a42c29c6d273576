_base_ = [
    "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "../_base_/gram_backbones.py",
]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),  # the pooling of AOGNet floors odd sizes
    backbone=dict(
        _delete_=True,
        type="AOGNet",
        variant="aognet_12m_released",
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
    ),
    neck=dict(in_channels=[824]),
)
