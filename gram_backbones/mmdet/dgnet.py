"""DG-Net as a backbone of MMDetection, and its last stage as the shared head of C4 detectors."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModule

from ..dgnet import DGNet, DGStage
from .interface import MMDetBackbone, MMDetInterface


@MODELS.register_module("DGNet")
class DGNetBackbone(MMDetBackbone, DGNet, BaseModule):
    """DG-Net with MMDetection's interface; arguments: see :class:`MMDetBackbone`.

    ``forward(x, valid_sizes=None)`` takes the unpadded sizes of the images; detectors with
    :class:`gram_backbones.mmdet.ValidSizesMixin` pass them.
    """

    default_variant = "dgnet_r50"


@MODELS.register_module("DGStage")
class DGNetStage(MMDetInterface, DGStage, BaseModule):
    """A ``shared_head``: DG-Net's last stage, with edges computed for every region.

    Maps regions ``(R, C, H, W)`` to ``(R, C', H / 2, W / 2)``; R may be 0. Arguments: see
    :class:`MMDetInterface` and :class:`gram_backbones.dgnet.DGStage`.
    """

    default_variant = "dgnet_r50"
