"""AOGNet as a Detectron2 backbone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from ..aognet import AOGNet, AOGNetVariant, AOGStage
from .interface import D2Interface, check_preprocessing, register_builders
from .norm import norm_factory

CONFIG = CfgNode(
    {
        "VARIANT": "aognet_40m_released",
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        # A norm of Detectron2's get_norm, or "GN" with as many groups (up to 32) as divide the
        # width.
        "NORM": "FrozenBN",
        "DROPOUT": 0.0,
        "WITH_CP": False,
        "OUTPUT_STRIDE": 32,  # or 8, 16: later stages are dilated; RES5_DILATION 2 is 16
        "LEARN_SCALES": False,
        # Changes to the variant's row; empty or None keeps what the row says.
        "WORDS": [],
        "BLOCKS": [],
        "CHANNELS": [],
        "PRUNING": [],
        "LATERAL": None,
        "SCALE_LATERAL_SKIP": None,
        "CONCAT_BY_ID": None,
    }
)


class AOGNetBackbone(D2Interface, AOGNet, Backbone):
    """AOGNet with Detectron2's interface; arguments: see :class:`D2Interface`."""

    default_variant = "aognet_40m_released"


def variant_from_config(cfg: CfgNode) -> AOGNetVariant:
    """The variant that ``MODEL.AOGNET`` names, with the changes that it lists."""
    node = cfg.MODEL.AOGNET
    changes = {
        "words": tuple(node.WORDS),
        "blocks": tuple(node.BLOCKS),
        "channels": tuple(node.CHANNELS),
        "pruning": tuple(None if item == "full" else item for item in node.PRUNING),
        "lateral": node.LATERAL,
        "scale_lateral_skip": node.SCALE_LATERAL_SKIP,
        "concat_by_id": node.CONCAT_BY_ID,
    }
    return AOGNet.find_variant(
        node.VARIANT, **{k: v for k, v in changes.items() if v not in ((), None)}
    )


def _build_last_stage(cfg: CfgNode) -> AOGStage:
    node = cfg.MODEL.AOGNET
    return AOGStage(
        variant_from_config(cfg),
        norm=norm_factory(node.NORM),
        dropout=node.DROPOUT,
        learn_scales=node.LEARN_SCALES,
        with_cp=node.WITH_CP,
    )


def _build(cfg: CfgNode, input_shape: ShapeSpec) -> AOGNetBackbone:
    """AOGNet from ``MODEL.AOGNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    node = cfg.MODEL.AOGNET
    variant = variant_from_config(cfg)
    check_preprocessing(cfg, variant.preprocessing)
    return AOGNetBackbone(
        variant,
        out_features=node.OUT_FEATURES,
        in_channels=input_shape.channels,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        dropout=node.DROPOUT,
        learn_scales=node.LEARN_SCALES,
        with_cp=node.WITH_CP,
        output_stride=node.OUTPUT_STRIDE,
    )


build_aognet_backbone, build_aognet_fpn_backbone, build_retinanet_aognet_fpn_backbone = (
    register_builders("aognet", CONFIG, _build, _build_last_stage)
)
