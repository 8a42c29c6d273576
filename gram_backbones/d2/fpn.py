"""Feature pyramids on our backbones, as Detectron2 builds them on its own."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """FPN for R-CNN detectors: one level per input feature, and P6 by max pooling."""
    return _fpn(cfg, bottom_up, LastLevelMaxPool())


def build_retinanet_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """FPN for RetinaNet: P6 and P7 by convolutions from the bottom-up ``res5``."""
    _require(["res5"], bottom_up)
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block) -> FPN:
    _require(cfg.MODEL.FPN.IN_FEATURES, bottom_up)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _require(features: list[str], bottom_up: Backbone) -> None:
    available = list(bottom_up.output_shape())
    if missing := [name for name in features if name not in available]:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES has {missing}, but the backbone's OUT_FEATURES are {available}"
        )
