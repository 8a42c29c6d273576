"""AOGNet as a backbone of MMDetection, and its last stage as the shared head of C4 detectors."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModule

from ..aognet import AOGNet, AOGStage
from .interface import MMDetBackbone, MMDetInterface


@MODELS.register_module("AOGNet")
class AOGNetBackbone(MMDetBackbone, AOGNet, BaseModule):
    """AOGNet with MMDetection's interface; arguments: see :class:`MMDetBackbone`."""

    default_variant = "aognet_40m_released"


@MODELS.register_module("AOGStage")
class AOGNetStage(MMDetInterface, AOGStage, BaseModule):
    """A ``shared_head``: AOGNet's last stage, ``(R, C, H, W)`` to ``(R, C', H / 2, W / 2)``.

    Arguments: see :class:`MMDetInterface` and :class:`gram_backbones.aognet.AOGStage`.
    """

    default_variant = "aognet_40m_released"
