"""Base of the MMDetection adapters: initialisation by ``init_cfg``, and ``norm_eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import has_fixed_parts
from ..staged import FEATURES, Variant
from ..weights.fit import is_counter
from ..weights.loading import load_weights
from .norm import norm_factory

if TYPE_CHECKING:
    from typing_extensions import Self

InitCfg = dict[str, Any] | Sequence[dict[str, Any]] | None


class MMDetInterface(BaseModule):
    """Mixin to put before a core class and ``BaseModule`` in a class statement.

    Args:
        variant: name of a row of the family's ``VARIANTS``, or a record.
        args: further arguments of the core class.
        norm_cfg: ``type`` BN, SyncBN or GN; ``requires_grad=False`` freezes the affine parameters.
        norm_eval: keep the statistics of BN fixed.
        init_cfg: as in MMEngine; ``dict(type='Pretrained', checkpoint=FILE)`` is loaded strictly.
            The file must hold the whole backbone. With a file of DG-Net's base network, routers and
            thresholds keep their initial values.
        kwargs: further arguments of the core class, such as ``with_cp``.

    Raises:
        ValueError: the variant, the norm or a width is not possible.
    """

    default_variant: str
    is_init: bool  # MMEngine's
    norm_eval = False
    missing_file: str | None = None  # error message until something fills the module

    def __init__(
        self,
        variant: str | Variant | None = None,
        *args: Any,
        norm_cfg: dict = dict(type="BN", requires_grad=True),  # noqa: B006 (not changed)
        norm_eval: bool = True,
        init_cfg: InitCfg = None,
        **kwargs: Any,
    ):
        variant = self.default_variant if variant is None else variant
        super().__init__(variant, *args, norm=norm_factory(norm_cfg), **kwargs)
        self.norm_eval = norm_eval
        self.init_cfg = init_cfg
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with ``norm_eval`` the statistics of BN stay fixed."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Apply ``init_cfg``; ``type='Pretrained'`` fills every tensor, or nothing.

        MMEngine's own ``PretrainedInit`` returns normally if no name fits. ``checkpoint`` is the
        file, or a name or tag of ``list_weights()``. Optional are ``prefix``, a prefix of the
        tensor names in it, and ``accept_license``, see :func:`gram_backbones.load_weights`.

        MMEngine initialises before it resumes, and a resumed run must work without the file. If the
        file does not exist, the first forward pass raises FileNotFoundError, unless a checkpoint
        has filled the module by then.

        Raises:
            WeightError: the file cannot be read or leaves a tensor of the module unfilled; the
                module is left as it was.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else list(given or ())
        pretrained = [cfg for cfg in cfgs if _is_pretrained(cfg["type"])]
        was_initialised = self.is_init
        # MMEngine gets none of them, as it would load them with strict=False.
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        if was_initialised:
            return
        for cfg in pretrained:
            self.is_init = False  # until it is filled, so that a corrected init_cfg is loaded
            self.is_init = self._load_pretrained(cfg)
        if not cfgs and has_fixed_parts(self):
            print_log(
                f"{type(self).__name__} has no init_cfg: the parts that frozen_stages and "
                "norm_eval keep fixed stay random, unless load_from or a resumed checkpoint fills "
                "them. To train from scratch, set frozen_stages=-1, norm_eval=False and "
                "norm_cfg=dict(type='BN', requires_grad=True).",
                logger="current",
                level=30,
            )

    def _load_pretrained(self, cfg: dict[str, Any]) -> bool:
        """Load a file, which must fill every tensor, and return whether it exists."""
        prefix = f"{cfg['prefix'].rstrip('.')}." if cfg.get("prefix") else ""
        try:
            accepted = cfg.get("accept_license")
            found = load_weights(self, cfg["checkpoint"], prefix, accept_license=accepted)
        except FileNotFoundError as error:
            self.missing_file = str(error)
            print_log(f"{error}: only a resumed run works without it", "current", level=30)
            return False
        self.missing_file = None
        for level, line in found.report():
            print_log(line, "current", level)
        return True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Called by every load_state_dict, of the module itself or of a detector around it.
        names = (name for name in self.state_dict() if not is_counter(name))
        if self.missing_file and all(prefix + name in state_dict for name in names):
            self.missing_file = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, *args, **kwargs):
        """See the core class; raises while a weight file is missing."""
        if self.missing_file:
            raise FileNotFoundError(self.missing_file)
        return super().forward(*args, **kwargs)


class MMDetBackbone(MMDetInterface):
    """Mixin for whole backbones, which map images ``(B, 3, H, W)`` to a tuple of feature maps.

    Args:
        variant, kwargs: as in :class:`MMDetInterface`.
        out_indices: stages whose outputs are returned, counted as MMDetection's ResNet does: 0 is
            ``res2``. Later stages are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.

    Raises:
        ValueError: also ``frozen_stages`` beyond the stages that are built.
    """

    def __init__(
        self,
        variant: str | Variant | None = None,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        **kwargs: Any,
    ):
        stages = FEATURES[1:]
        allowed = tuple(range(len(stages)))
        wanted = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
        known = all(index in allowed for index in wanted)
        if not (wanted and known and len({*wanted}) == len(wanted)):
            raise ValueError(
                f"out_indices is {wanted or out_indices}; allowed are distinct indices out of "
                f"{allowed}, counted as MMDetection's ResNet does: 0 is 'res2'"
            )
        features = tuple(stages[index] for index in wanted)
        super().__init__(variant, out_features=features, frozen_stages=frozen_stages, **kwargs)
        self.by_index = True

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned feature maps, for a neck's ``in_channels``."""
        return tuple(self.feature_channels[name] for name in self.out_features)


def _is_pretrained(kind: str | type) -> bool:
    # A registry's scope may stand before the name.
    return kind is PretrainedInit or str(kind).rsplit(".", 1)[-1] == "Pretrained"
