"""The part of a detector that runs once per image, for counting: backbone, pyramid, dense head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

from .config import add_gram_backbones_config, merge_config


class _Levels(nn.Module):
    """Chooses the feature maps that a head reads."""

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.names]


def build_trunk(
    config: str, changes: Sequence[str] = ()
) -> tuple[nn.Module, nn.Sequential, dict[str, nn.Module]]:
    """A config's detector without values, on the ``meta`` device.

    RoI heads are not part of the trunk: what they cost depends on the number of proposals.

    Args:
        config: path of a Detectron2 config.
        changes: pairs of ``KEY VALUE``.

    Returns:
        The detector; its trunk, which takes images ``(B, 3, H, W)`` of sizes that the backbone's
        ``size_divisibility`` divides; and the trunk's parts by name, ``backbone`` first.

    Raises:
        ValueError: the config has an unknown key or value.
    """
    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    merge_config(cfg, config, [*changes, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        detector = build_model(cfg)
    backbone = detector.backbone
    steps: OrderedDict[str, nn.Module] = OrderedDict(backbone=backbone)
    parts = {"backbone": getattr(backbone, "bottom_up", backbone)}
    if parts["backbone"] is not backbone:
        parts["pyramid"] = backbone
    if hasattr(detector, "proposal_generator") and hasattr(detector.proposal_generator, "rpn_head"):
        steps["levels"] = _Levels(detector.proposal_generator.in_features)
        steps["head"] = parts["RPN head"] = detector.proposal_generator.rpn_head
    elif hasattr(detector, "head_in_features"):
        steps["levels"] = _Levels(detector.head_in_features)
        steps["head"] = parts["head"] = detector.head
    return detector, nn.Sequential(steps), parts
