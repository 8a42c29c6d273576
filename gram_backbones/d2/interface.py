"""What every family's Detectron2 backbone shares: arguments and shapes in Detectron2's terms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ..preprocessing import Preprocessing
from ..staged import FEATURES, StagedBackbone, Variant
from .fpn import build_fpn, build_retinanet_fpn
from .norm import norm_factory

logger = logging.getLogger(__name__)


class D2Interface(StagedBackbone):
    """Mixin to put before a core class and ``Backbone`` in a class statement.

    Arguments are plain values, so that LazyConfig can build the class directly.

    Args:
        variant: name of a row of the family's ``VARIANTS``, or a record.
        out_features: names out of ``stem``, ``res2`` … ``res5``.
        norm: a norm of Detectron2's ``get_norm``.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and ``res2``, and so on.
        kwargs: further arguments of the core class.

    Raises:
        ValueError: the variant, a feature, the norm or a width is not possible, or ``freeze_at`` is
            beyond the stages that are built.
    """

    default_variant: str

    def __init__(
        self,
        variant: str | Variant | None = None,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 2,
        **kwargs: Any,
    ):
        super().__init__(
            self.default_variant if variant is None else variant,
            out_features=feature_names(out_features),
            norm=norm_factory(norm),
            frozen_stages=frozen_stages(freeze_at),
            **kwargs,
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the features that the forward pass returns."""
        return {
            name: ShapeSpec(channels=self.feature_channels[name], stride=self.feature_strides[name])
            for name in self.out_features
        }


Builder = Callable[[CfgNode, ShapeSpec], Backbone]
# Name of a family's config node below ``MODEL`` -> its defaults.
CONFIG_NODES: dict[str, CfgNode] = {}
# Name of a registered backbone -> its config node, and the builder of its last stage for C4 heads.
LAST_STAGES: dict[str, tuple[str, Callable[[CfgNode], nn.Module]]] = {}


def register_builders(
    family: str,
    node: CfgNode,
    build: Builder,
    build_last_stage: Callable[[CfgNode], nn.Module],
) -> tuple[Builder, Builder, Builder]:
    """Register a family's backbone alone, with R-CNN's FPN and with RetinaNet's FPN.

    Args:
        family: name, as in ``build_{family}_backbone``. In upper case it names the node below
            ``MODEL``.
        node: defaults of that node.
        build: builds the backbone from a config.
        build_last_stage: builds the stage that a C4 detector applies to every region. The stage has
            an attribute ``out_channels``.

    Returns:
        The builders registered as ``build_{family}_backbone``, ``build_{family}_fpn_backbone`` and
        ``build_retinanet_{family}_fpn_backbone``.
    """

    def fpn(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
        """The backbone with the FPN of R-CNN detectors."""
        return build_fpn(cfg, build(cfg, input_shape))

    def retinanet_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
        """The backbone with RetinaNet's FPN, P6 and P7 included."""
        return build_retinanet_fpn(cfg, build(cfg, input_shape))

    CONFIG_NODES[family.upper()] = node
    LAST_STAGES[f"build_{family}_backbone"] = (family.upper(), build_last_stage)
    for builder, name in (
        (build, f"build_{family}_backbone"),
        (fpn, f"build_{family}_fpn_backbone"),
        (retinanet_fpn, f"build_retinanet_{family}_fpn_backbone"),
    ):
        builder.__name__ = builder.__qualname__ = name
        builder.__module__ = build.__module__  # where the caller defines it
        BACKBONE_REGISTRY.register(builder)
    return build, fpn, retinanet_fpn


def frozen_stages(freeze_at: int) -> int:
    """``frozen_stages`` for Detectron2's ``FREEZE_AT``: 1 is the stem, 2 the stem and ``res2``.

    Raises:
        ValueError: ``freeze_at`` is out of range.
    """
    if not 0 <= freeze_at <= len(FEATURES):
        raise ValueError(f"FREEZE_AT is {freeze_at}; allowed are 0 to {len(FEATURES)}")
    return freeze_at - 1


def feature_names(out_features: Sequence[str]) -> tuple[str, ...]:
    """Check the names of features; Detectron2 selects features only by name.

    Raises:
        ValueError: a feature is unknown.
    """
    if bad := [name for name in out_features if name not in FEATURES]:
        raise ValueError(f"OUT_FEATURES has {bad}; allowed are {FEATURES}")
    return tuple(out_features)


def check_preprocessing(cfg: CfgNode, wanted: Preprocessing) -> None:
    """Warn if a config prepares images differently from what the variant's weights expect."""
    given = Preprocessing(tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT)
    if given != wanted:
        logger.warning(
            "The config prepares images as %s, but the backbone's published weights expect %s. Set "
            "MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT, unless your weights differ.",
            given,
            wanted,
        )
