"""What every adapter to MMDetection shares: initialisation by ``init_cfg``, and ``norm_eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import has_fixed_parts
from ..staged import Variant
from ..weights.fit import is_counter, load_weights
from .norm import norm_factory

if TYPE_CHECKING:
    from typing_extensions import Self

InitCfg = dict[str, Any] | Sequence[dict[str, Any]] | None


class MMDetInterface(BaseModule):
    """Stands before a core class and ``BaseModule`` in a class statement.

    Args:
        variant: name of a row of the family's ``VARIANTS``, or a record.
        args: further arguments of the core class.
        norm_cfg: ``type`` BN, SyncBN or GN; ``requires_grad=False`` fixes the affine terms.
        norm_eval: the statistics of BN stay as they are.
        init_cfg: of MMEngine; ``dict(type='Pretrained', checkpoint=FILE)`` is loaded strictly. The
            file is a whole backbone's. A file of DG-Net's base network leaves routers and
            thresholds at their start.
        kwargs: further arguments of the core class, such as ``with_cp``.

    Raises:
        ValueError: a variant, norm or width that is not possible.
    """

    default_variant: str
    is_init: bool  # MMEngine's
    norm_eval = False
    missing_file: str | None = None  # what to say until something fills the module

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
        """Set the mode; with ``norm_eval`` the statistics of BN stay as they are."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Apply ``init_cfg``; ``type='Pretrained'`` fills every tensor, or nothing.

        MMEngine's own ``PretrainedInit`` returns normally when no name fits. ``checkpoint`` is the
        file, ``prefix`` (optional) what stands before the tensor names in it.

        MMEngine initialises before it resumes, and a resumed run must do without the file: where it
        does not exist, the first forward pass raises FileNotFoundError, unless a checkpoint has
        filled the module by then.

        Raises:
            WeightError: the file is not read, or leaves a tensor of the module unfilled; the module
                is left as it was.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else list(given or ())
        pretrained = [cfg for cfg in cfgs if _is_pretrained(cfg["type"])]
        was_initialised = self.is_init
        # None of them is left to MMEngine: it would load with strict=False.
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        if was_initialised:
            return
        for cfg in pretrained:
            self.is_init = False  # until it is filled: a corrected init_cfg is to be loaded
            self.is_init = self._load_pretrained(cfg)
        if not cfgs and has_fixed_parts(self):
            print_log(
                f"{type(self).__name__} has no init_cfg: what frozen_stages and norm_eval fix "
                "stays random, unless load_from or a resumed checkpoint fills it. To train from "
                "scratch, set frozen_stages=-1, norm_eval=False and "
                "norm_cfg=dict(type='BN', requires_grad=True).",
                logger="current",
                level=30,
            )

    def _load_pretrained(self, cfg: dict[str, Any]) -> bool:
        """Whether there was a file; what it leaves unfilled is an error."""
        prefix = f"{cfg['prefix'].rstrip('.')}." if cfg.get("prefix") else ""
        try:
            found = load_weights(self, cfg["checkpoint"], prefix)
        except FileNotFoundError as error:
            self.missing_file = str(error)
            print_log(f"{error}: only a resumed run can do without it", "current", level=30)
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
        """See the core class; refused while a weight file is missing."""
        if self.missing_file:
            raise FileNotFoundError(self.missing_file)
        return super().forward(*args, **kwargs)


class MMDetBackbone(MMDetInterface):
    """The same for whole backbones: images ``(B, 3, H, W)`` to a tuple of feature maps.

    Args:
        variant, kwargs: as in :class:`MMDetInterface`.
        out_indices: stages whose outputs are returned, 0 is the first; later ones are not built.
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
        features = tuple(out_indices)
        super().__init__(variant, out_features=features, frozen_stages=frozen_stages, **kwargs)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the feature maps that the forward pass returns: a neck's ``in_channels``."""
        return tuple(self.feature_channels[name] for name in self.out_features)


def _is_pretrained(kind: str | type) -> bool:
    # A registry's scope may stand before the name.
    return kind is PretrainedInit or str(kind).rsplit(".", 1)[-1] == "Pretrained"
