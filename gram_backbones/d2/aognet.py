"""AOGNet as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN

from ..aognet import AOGNet, AOGNetVariant, AOGStage, get_variant
from .fpn import build_fpn, build_retinanet_fpn
from .interface import check_preprocessing, feature_names, frozen_stages, output_shape
from .norm import norm_factory


class AOGNetBackbone(AOGNet, Backbone):
    """AOGNet with Detectron2's interface; plain arguments, so that LazyConfig takes it as it is.

    Args:
        variant: name of a row of ``gram_backbones.aognet.VARIANTS``, or a record.
        out_features: names out of ``stem``, ``res2`` … ``res5``.
        norm: a norm of Detectron2's ``get_norm``.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and ``res2``, and so on.
        kwargs: further arguments of :class:`gram_backbones.AOGNet`.

    Raises:
        ValueError: a variant, feature, norm or width that is not possible, or ``freeze_at`` beyond
            the stages that are built.
    """

    def __init__(
        self,
        variant: str | AOGNetVariant = "aognet_40m_released",
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 2,
        **kwargs,
    ):
        super().__init__(
            variant,
            out_features=feature_names(out_features),
            norm=norm_factory(norm),
            frozen_stages=frozen_stages(freeze_at),
            **kwargs,
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the features that the forward pass returns."""
        return output_shape(self)


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
    return get_variant(node.VARIANT, **{k: v for k, v in changes.items() if v not in ((), None)})


def build_aognet_res5(cfg: CfgNode) -> AOGStage:
    """The last stage of ``MODEL.AOGNET``'s variant, as a C4 detector applies it to every region."""
    node = cfg.MODEL.AOGNET
    variant = variant_from_config(cfg)
    return AOGStage(
        variant,
        len(variant.words) - 1,
        norm=norm_factory(node.NORM),
        dropout=node.DROPOUT,
        learn_scales=node.LEARN_SCALES,
        with_cp=node.WITH_CP,
    )


@BACKBONE_REGISTRY.register()
def build_aognet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AOGNetBackbone:
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
    )


@BACKBONE_REGISTRY.register()
def build_aognet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """AOGNet with the FPN of R-CNN detectors."""
    return build_fpn(cfg, build_aognet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_aognet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """AOGNet with RetinaNet's FPN, P6 and P7 included."""
    return build_retinanet_fpn(cfg, build_aognet_backbone(cfg, input_shape))
