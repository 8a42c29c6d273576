"""AOGNet as a backbone of MMDetection, and its last stage as the shared head of C4 detectors."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule

from ..aognet import AOGNet, AOGNetVariant, AOGStage, get_variant
from .interface import InitCfg, MMDetBackbone, MMDetInterface
from .norm import norm_factory


@MODELS.register_module("AOGNet")
class AOGNetBackbone(MMDetBackbone, AOGNet, BaseModule):
    """AOGNet with MMDetection's interface: images ``(B, 3, H, W)`` to a tuple of feature maps.

    Args:
        variant: name of a row of ``gram_backbones.aognet.VARIANTS``, or a record.
        out_indices: stages whose outputs are returned, 0 is the first; later ones are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.
        norm_cfg: ``type`` BN, SyncBN or GN; ``requires_grad=False`` fixes the affine terms.
        norm_eval: the statistics of BN stay as they are.
        with_cp: recompute each block's activations in the backward pass to save memory.
        init_cfg: of MMEngine; ``dict(type='Pretrained', checkpoint=FILE)`` is loaded strictly.
        kwargs: further arguments of :class:`gram_backbones.AOGNet`.

    Raises:
        ValueError: a variant, index, norm or width that is not possible, or ``frozen_stages``
            beyond the stages that are built.
    """

    def __init__(
        self,
        variant: str | AOGNetVariant = "aognet_40m_released",
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type="BN", requires_grad=True),  # noqa: B006 (not changed)
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
        **kwargs,
    ):
        super().__init__(
            variant,
            out_features=tuple(out_indices),
            frozen_stages=frozen_stages,
            norm=norm_factory(norm_cfg),
            with_cp=with_cp,
            **kwargs,
        )
        self._adapt(norm_eval, init_cfg)


@MODELS.register_module("AOGStage")
class AOGNetStage(MMDetInterface, AOGStage, BaseModule):
    """A ``shared_head``: AOGNet's last stage, ``(R, C, H, W)`` to ``(R, C', H / 2, W / 2)``.

    Args:
        variant: name or record.
        index: which stage of the variant, from 0; its last one by default.
        norm_cfg, norm_eval, with_cp, init_cfg: as in :class:`AOGNetBackbone`. The weight file is
            the whole backbone's.
        kwargs: further arguments of :class:`gram_backbones.aognet.AOGStage`.
    """

    def __init__(
        self,
        variant: str | AOGNetVariant = "aognet_40m_released",
        index: int | None = None,
        *,
        norm_cfg: dict = dict(type="BN", requires_grad=True),  # noqa: B006
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
        **kwargs,
    ):
        variant = get_variant(variant)
        index = len(variant.words) - 1 if index is None else index
        super().__init__(variant, index, norm=norm_factory(norm_cfg), with_cp=with_cp, **kwargs)
        self._adapt(norm_eval, init_cfg)
