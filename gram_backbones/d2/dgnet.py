"""DG-Net as a Detectron2 backbone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from ..dgnet import DGNet, DGNetVariant, DGStage
from ..dgnet.variants import GRAPH_OPTIONS
from .interface import D2Interface, check_preprocessing, register_builders
from .norm import norm_factory

CONFIG = CfgNode(
    {
        "VARIANT": "dgnet_r50",
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "NORM": "FrozenBN",
        "EDGES": "dynamic",  # or "static", "chain", "er", "ba", "ws"
        "ROUTER_BIAS": 3.0,  # initial, of the edges from a node to the next
        "SIDE_BIAS": -3.0,  # initial, of all other edges
        "GATE": "straight_through",  # or "soft", "paper"
        "BLOCK_SHORTCUT": True,
        "WIRING_SEED": 0,
        "WITH_CP": False,
        "OUTPUT_STRIDE": 32,  # or 8, 16: later stages are dilated; RES5_DILATION 2 is 16
        # Start near the base network: None once its weights are loaded, True at once, False never.
        # ROUTER_BIAS and SIDE_BIAS then have no effect.
        "START_AS_BASE": None,
    }
)


class DGNetBackbone(D2Interface, DGNet, Backbone):
    """DG-Net with Detectron2's interface; arguments: see :class:`D2Interface`.

    ``forward(x, valid_sizes=None)`` takes the unpadded sizes of the images;
    :class:`gram_backbones.d2.GramGeneralizedRCNN` passes them.
    """

    default_variant = "dgnet_r50"


def variant_from_config(cfg: CfgNode) -> DGNetVariant:
    """The variant that ``MODEL.DGNET`` names, with the edges that it describes."""
    node = cfg.MODEL.DGNET
    options = {name: node[name.upper()] for name in GRAPH_OPTIONS}
    return DGNet.find_variant(node.VARIANT, **options)


def _starts_as_base(node: CfgNode) -> bool | None:
    return node.START_AS_BASE if node.EDGES == "dynamic" else False


def _build_last_stage(cfg: CfgNode) -> DGStage:
    node = cfg.MODEL.DGNET
    return DGStage(
        variant_from_config(cfg),
        norm=norm_factory(node.NORM),
        with_cp=node.WITH_CP,
        start_as_base=_starts_as_base(node),
    )


def _build(cfg: CfgNode, input_shape: ShapeSpec) -> DGNetBackbone:
    """DG-Net from ``MODEL.DGNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    node = cfg.MODEL.DGNET
    variant = variant_from_config(cfg)
    check_preprocessing(cfg, variant.preprocessing)
    return DGNetBackbone(
        variant,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        start_as_base=_starts_as_base(node),
        with_cp=node.WITH_CP,
        output_stride=node.OUTPUT_STRIDE,
    )


build_dgnet_backbone, build_dgnet_fpn_backbone, build_retinanet_dgnet_fpn_backbone = (
    register_builders("dgnet", CONFIG, _build, _build_last_stage)
)
