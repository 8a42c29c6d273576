"""The smallest detectors of both frameworks: configs and files of random weights."""

import json

import torch

from tests.conftest import ROOT

CLASSES = ["disc", "box", "triangle", "star"]
_D2 = """
_BASE_: {root}/d2_configs/demo_mask_rcnn_aognet4m_fpn.yaml
MODEL:
  AOGNET: {{CHANNELS: [8, 16, 24, 32, 48], BLOCKS: [1, 1, 2, 1]}}
  FPN: {{OUT_CHANNELS: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
  ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}
INPUT: {{MIN_SIZE_TEST: 64}}
TEST: {{DETECTIONS_PER_IMAGE: 8}}
"""
_MMDET = """
_base_ = "{root}/mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
classes = {classes}
model = dict(
    backbone=dict(_delete_=True, type="AOGNet", variant="aognet_4m", norm_cfg=dict(type="BN")),
    neck=dict(in_channels=[56, 120, 256, 640], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=4),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=4),
    ),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=8)),
)
test_dataloader = dict(dataset=dict(
    metainfo=dict(classes=classes),
    pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(128, 64), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_shape", "ori_shape", "scale_factor")),
    ],
))
"""


def write_d2(folder):
    """Config and weights of a Mask R-CNN for Detectron2."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from gram_backbones.d2 import add_gram_backbones_config

    config = folder / "tiny.yaml"
    config.write_text(_D2.format(root=ROOT))
    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return _saved(
        config, dict(model=build_model(cfg).state_dict(), meta=dict(classes=json.dumps(CLASSES)))
    )


def write_mmdet(folder):
    """Config and weights of a Mask R-CNN for MMDetection."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    config = folder / "tiny.py"
    config.write_text(_MMDET.format(root=ROOT, classes=tuple(CLASSES)))
    init_default_scope("mmdet")
    torch.manual_seed(0)
    return _saved(config, dict(state_dict=MODELS.build(Config.fromfile(config).model).state_dict()))


def _saved(config, content):
    weights = config.with_suffix(".pth")
    torch.save(content, weights)
    return str(config), str(weights)
