"""What every family's Detectron2 backbone shares: arguments and shapes in Detectron2's terms."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..preprocessing import Preprocessing
from ..staged import FEATURES, StagedBackbone

logger = logging.getLogger(__name__)


def output_shape(backbone: StagedBackbone) -> dict[str, ShapeSpec]:
    """Channels and strides of the features that the forward pass returns."""
    return {
        name: ShapeSpec(
            channels=backbone.feature_channels[name], stride=backbone.feature_strides[name]
        )
        for name in backbone.out_features
    }


def frozen_stages(freeze_at: int) -> int:
    """``frozen_stages`` for Detectron2's ``FREEZE_AT``: 1 is the stem, 2 the stem and ``res2``.

    Raises:
        ValueError: out of range.
    """
    if not 0 <= freeze_at <= len(FEATURES):
        raise ValueError(f"FREEZE_AT is {freeze_at}; allowed are 0 to {len(FEATURES)}")
    return freeze_at - 1


def feature_names(out_features: Sequence[str]) -> tuple[str, ...]:
    """Detectron2's features go by name only.

    Raises:
        ValueError: an unknown feature.
    """
    if bad := [name for name in out_features if name not in FEATURES]:
        raise ValueError(f"OUT_FEATURES holds {bad}; allowed are {FEATURES}")
    return tuple(out_features)


def check_preprocessing(cfg: CfgNode, wanted: Preprocessing) -> None:
    """Warn where a config prepares images otherwise than the variant's weights expect."""
    given = Preprocessing(tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT)
    if given != wanted:
        logger.warning(
            "The config's images are %s; the backbone's published weights expect %s. Set "
            "MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT, unless your weights differ.",
            given,
            wanted,
        )
