"""The part of a detector that runs once per image, for counting: backbone, neck, dense head."""

from __future__ import annotations

from collections import OrderedDict

import torch
from mmdet.models import SingleStageDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from .channels import fill_channels
from .checks import check_backbone


def build_trunk(config: str) -> tuple[nn.Module, nn.Sequential, dict[str, nn.Module]]:
    """A config's detector without values, on the ``meta`` device.

    RoI heads are not part of the trunk: what they cost depends on the number of proposals; nor are
    transformers.

    Args:
        config: path of an MMDetection config.

    Returns:
        The detector; its trunk, which takes images ``(B, 3, H, W)``; and the trunk's parts by name,
        ``backbone`` first.

    Raises:
        ValueError: the backbone has no such variant or argument.
    """
    cfg = Config.fromfile(config)
    init_default_scope("mmdet")
    check_backbone(cfg)
    with torch.device("meta"):
        detector = MODELS.build(fill_channels(cfg.model))
    parts = {"backbone": detector.backbone}
    if detector.with_neck:
        parts["neck"] = detector.neck
    if getattr(detector, "with_rpn", False):
        parts["RPN head"] = detector.rpn_head
    elif isinstance(detector, SingleStageDetector):
        parts["head"] = detector.bbox_head
    return detector, nn.Sequential(OrderedDict(parts)), parts
