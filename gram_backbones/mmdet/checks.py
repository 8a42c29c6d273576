"""Checks of a config before anything is built: keys and arguments that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from ..suggestions import check_arguments, did_you_mean
from .interface import MMDetInterface

# Top-level keys that are read by MMEngine besides the runner's arguments, or by this package.
_READ = (
    "activation_checkpointing",
    "auto_scale_lr",
    "compile",
    "custom_imports",
    "data_root",
    "deploy",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "skip_unreadable",
    "sync_bn",
    "verbose",
)


def check_new_keys(cfg: Config, changes: Iterable[str]) -> None:
    """Make sure that changes begin with a key that the config has or that something reads.

    Raises:
        ValueError: one does not.
    """
    known = {*cfg.keys(), *signature(Runner).parameters, *_READ}
    for key in changes:
        name = key.partition(".")[0]
        if name not in known:
            raise ValueError(
                f"--cfg-options sets {key}, and nothing reads {name}{did_you_mean(name, known)}; "
                f"allowed are {', '.join(sorted(known))}"
            )


def check_backbone(cfg: Config) -> None:
    """Make sure that the backbone has the variant and the arguments, where it is one of ours.

    Raises:
        ValueError: there is no such variant or argument.
    """
    backbone = dict(cfg.get("model", {}).get("backbone") or {})
    kind = backbone.pop("type", "")
    family = MODELS.get(kind) if isinstance(kind, str) else kind
    if isinstance(family, type) and issubclass(family, MMDetInterface):
        name = kind if isinstance(kind, str) else family.__name__
        check_arguments(f"model.backbone, {name},", backbone, family.argument_names())
        family.find_variant(backbone.get("variant", family.default_variant))
