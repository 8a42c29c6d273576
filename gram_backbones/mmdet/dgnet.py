"""DG-Net as a backbone of MMDetection, and its last stage as the shared head of C4 detectors."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule

from ..dgnet.network import DGNet, DGNetVariant, DGStage
from .interface import InitCfg, MMDetBackbone, MMDetInterface
from .norm import norm_factory


@MODELS.register_module("DGNet")
class DGNetBackbone(MMDetBackbone, DGNet, BaseModule):
    """DG-Net with MMDetection's interface: images ``(B, 3, H, W)`` to a tuple of feature maps.

    ``forward(x, valid_sizes=None)`` takes the unpadded sizes of the images; detectors with
    :class:`gram_backbones.mmdet.ValidSizesMixin` pass them.

    Args:
        variant: name of a row of ``gram_backbones.dgnet.network.VARIANTS``, or a record.
        out_indices: stages whose outputs are returned, 0 is the first; later ones are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages, with
            their routers and thresholds.
        norm_cfg: ``type`` BN, SyncBN or GN; ``requires_grad=False`` fixes the affine terms.
        norm_eval: the statistics of BN stay as they are.
        with_cp: recompute the activations inside each block in the backward pass to save memory.
        start_as_base: start near the base network, for its pretrained weights.
        init_cfg: of MMEngine; ``dict(type='Pretrained', checkpoint=FILE)`` is loaded strictly. A
            file of the base network leaves routers and thresholds at their start.
        kwargs: further arguments of :class:`gram_backbones.DGNet`.

    Raises:
        ValueError: a variant, index, norm or option that is not possible, or ``frozen_stages``
            beyond the stages that are built.
    """

    def __init__(
        self,
        variant: str | DGNetVariant = "dgnet_r50",
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type="BN", requires_grad=True),  # noqa: B006 (not changed)
        norm_eval: bool = True,
        with_cp: bool = False,
        start_as_base: bool = False,
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
        if start_as_base:
            self.start_as_base()
        self._adapt(norm_eval, init_cfg)


@MODELS.register_module("DGStage")
class DGNetStage(MMDetInterface, DGStage, BaseModule):
    """A ``shared_head``: DG-Net's last stage, dynamic for every region.

    Regions ``(R, C, H, W)``, ``(R, C', H/2, W/2)`` out; R may be 0.

    Args:
        variant: name or record.
        norm_cfg, norm_eval, with_cp, start_as_base, init_cfg: as in :class:`DGNetBackbone`. The
            weight file is the whole backbone's.
        kwargs: further arguments of :class:`gram_backbones.dgnet.network.DGStage`.
    """

    def __init__(
        self,
        variant: str | DGNetVariant = "dgnet_r50",
        *,
        norm_cfg: dict = dict(type="BN", requires_grad=True),  # noqa: B006
        norm_eval: bool = True,
        with_cp: bool = False,
        start_as_base: bool = False,
        init_cfg: InitCfg = None,
        **kwargs,
    ):
        super().__init__(variant, norm=norm_factory(norm_cfg), with_cp=with_cp, **kwargs)
        if start_as_base:
            self.start_as_base()
        self._adapt(norm_eval, init_cfg)
