"""DG-Net as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN

from ..dgnet.network import DGNet, DGNetVariant, DGStage, get_variant
from .fpn import build_fpn, build_retinanet_fpn
from .interface import check_preprocessing, feature_names, frozen_stages, output_shape
from .norm import norm_factory


class DGNetBackbone(DGNet, Backbone):
    """DG-Net with Detectron2's interface; plain arguments, so that LazyConfig takes it as it is.

    ``forward(x, valid_sizes=None)`` takes the unpadded sizes of the images;
    :class:`gram_backbones.d2.GramGeneralizedRCNN` passes them.

    Args:
        variant: name of a row of ``gram_backbones.dgnet.network.VARIANTS``, or a record.
        out_features: names out of ``stem``, ``res2`` … ``res5``.
        norm: a norm of Detectron2's ``get_norm``.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and ``res2``, and so on; with a stage
            its routers and thresholds.
        start_as_base: start near the base network, for its pretrained weights.
        kwargs: further arguments of :class:`gram_backbones.DGNet`.

    Raises:
        ValueError: a variant, feature, norm or option that is not possible, or ``freeze_at`` beyond
            the stages that are built.
    """

    def __init__(
        self,
        variant: str | DGNetVariant = "dgnet_r50",
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 2,
        start_as_base: bool = False,
        **kwargs,
    ):
        super().__init__(
            variant,
            out_features=feature_names(out_features),
            norm=norm_factory(norm),
            frozen_stages=frozen_stages(freeze_at),
            **kwargs,
        )
        if start_as_base:
            self.start_as_base()

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the features that the forward pass returns."""
        return output_shape(self)


def variant_from_config(cfg: CfgNode) -> DGNetVariant:
    """The variant that ``MODEL.DGNET`` names, with the edges that it describes."""
    node = cfg.MODEL.DGNET
    return get_variant(
        node.VARIANT,
        edges=node.EDGES,
        router_bias=node.ROUTER_BIAS,
        side_bias=node.SIDE_BIAS,
        gate=node.GATE,
        block_shortcut=node.BLOCK_SHORTCUT,
        wiring_seed=node.WIRING_SEED,
    )


def build_dgnet_res5(cfg: CfgNode) -> DGStage:
    """The last stage of ``MODEL.DGNET``'s variant, dynamic for every region."""
    node = cfg.MODEL.DGNET
    stage = DGStage(variant_from_config(cfg), norm=norm_factory(node.NORM), with_cp=node.WITH_CP)
    if node.START_AS_BASE and node.EDGES == "dynamic":
        stage.start_as_base()
    return stage


@BACKBONE_REGISTRY.register()
def build_dgnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DGNetBackbone:
    """DG-Net from ``MODEL.DGNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    node = cfg.MODEL.DGNET
    variant = variant_from_config(cfg)
    check_preprocessing(cfg, variant.preprocessing)
    return DGNetBackbone(
        variant,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        start_as_base=node.START_AS_BASE and node.EDGES == "dynamic",
        with_cp=node.WITH_CP,
    )


@BACKBONE_REGISTRY.register()
def build_dgnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """DG-Net with the FPN of R-CNN detectors."""
    return build_fpn(cfg, build_dgnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_dgnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """DG-Net with RetinaNet's FPN, P6 and P7 included."""
    return build_retinanet_fpn(cfg, build_dgnet_backbone(cfg, input_shape))
