"""What every adapter to MMDetection shares: initialisation by ``init_cfg``, and ``norm_eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..weights import fill

InitCfg = dict[str, Any] | Sequence[dict[str, Any]] | None


class MMDetInterface:
    """Stands before a core class and ``BaseModule`` in a class statement.

    A constructor ends with :meth:`_adapt`.

    Attributes:
        weight_prefixes: what may stand before the module's tensor names in a weight file.
    """

    norm_eval = False
    weight_prefixes: tuple[str, ...] = ("",)
    _missing_file: FileNotFoundError | None = None

    def _adapt(self, norm_eval: bool, init_cfg: InitCfg) -> None:
        self.norm_eval = norm_eval
        self.init_cfg = init_cfg
        self.train()

    def train(self, mode: bool = True) -> nn.Module:
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
        does not exist, the first forward pass raises, unless a checkpoint was loaded by then.

        Raises:
            ValueError: the file is no weight file, or leaves a tensor of the module unfilled; the
                module is left as it was.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else list(given or ())
        pretrained = [cfg for cfg in cfgs if cfg["type"] in ("Pretrained", PretrainedInit)]
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
            self._load_pretrained(cfg)
        if not cfgs and _has_fixed_random_parts(self):
            print_log(
                f"{type(self).__name__} has no init_cfg: what frozen_stages and norm_eval fix "
                "stays random, unless load_from or a resumed checkpoint fills it. To train from "
                "scratch, set frozen_stages=-1, norm_eval=False and norm_cfg=dict(type='BN').",
                logger="current",
                level=30,
            )

    def _load_pretrained(self, cfg: dict[str, Any]) -> None:
        prefixes = [cfg["prefix"].rstrip(".") + "."] if cfg.get("prefix") else self.weight_prefixes
        try:
            count, _ = fill(self, cfg["checkpoint"], prefixes)
        except FileNotFoundError as error:
            self._wait_for_checkpoint(error)
            return
        print_log(
            f"loaded {count} of {count} backbone tensors from {cfg['checkpoint']}",
            logger="current",
        )

    def _wait_for_checkpoint(self, error: FileNotFoundError) -> None:
        print_log(f"{error}: only a run that is resumed can do without it", "current", level=30)
        handles = []

        def loaded(module: nn.Module, keys: object) -> None:
            for handle in handles:
                handle.remove()

        def refuse(module: nn.Module, args: tuple) -> None:
            raise error

        handles.append(self.register_load_state_dict_post_hook(loaded))
        handles.append(self.register_forward_pre_hook(refuse))


class MMDetBackbone(MMDetInterface):
    """The same for whole backbones."""

    weight_prefixes = ("", "backbone.bottom_up.", "backbone.")

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the feature maps that the forward pass returns: a neck's ``in_channels``."""
        return tuple(self.feature_channels[name] for name in self.out_features)


def _has_fixed_random_parts(module: nn.Module) -> bool:
    norms = any(isinstance(m, _BatchNorm) and not m.training for m in module.modules())
    return norms or not all(p.requires_grad for p in module.parameters())
