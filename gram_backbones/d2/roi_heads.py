"""RoI heads of C4 detectors: the backbone family's own last stage, applied to every region."""

from __future__ import annotations

from typing import cast

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from .interface import LAST_STAGES


@ROI_HEADS_REGISTRY.register()
class GramRes5ROIHeads(Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads`` with the last stage of the backbone's family as its ``res5``.

    ``MODEL.BACKBONE.NAME`` names the backbone, and so the family.

    Raises:
        ValueError: the backbone is not of this package, or already includes that stage.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        name = cfg.MODEL.BACKBONE.NAME
        if name not in LAST_STAGES:
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME GramRes5ROIHeads does not support MODEL.BACKBONE.NAME "
                f"{name!r}; allowed are {sorted(LAST_STAGES)}"
            )
        if list(cfg.MODEL.ROI_HEADS.IN_FEATURES) != ["res4"]:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES is {cfg.MODEL.ROI_HEADS.IN_FEATURES}; "
                "GramRes5ROIHeads needs ['res4']"
            )
        node, build_last_stage = LAST_STAGES[name]
        if "res5" in cfg.MODEL[node].OUT_FEATURES:
            raise ValueError(
                "the backbone's OUT_FEATURES include 'res5', which GramRes5ROIHeads applies to "
                "regions; set them to ['res4'] for C4"
            )
        stage = build_last_stage(cfg)
        return stage, cast(int, stage.out_channels)  # which register_builders asks for
