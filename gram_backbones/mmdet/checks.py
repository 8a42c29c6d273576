"""Checks of a config before anything is built: keys that do not exist, impossible values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from numbers import Number
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from ..suggestions import check_arguments, did_you_mean
from .channels import AUTO, fill_channels
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


# Least values of numbers whose mistakes would show late, or far from their cause.
_LEAST = {
    "model.neck.num_outs": 1,
    "model.neck.out_channels": 1,
    "optim_wrapper.optimizer.lr": 0,
    "train_cfg.max_epochs": 1,
    "train_cfg.max_iters": 1,
    "train_dataloader.batch_size": 1,
    "train_dataloader.num_workers": 0,
}


def check_changes(cfg: Config, changes: Mapping[str, Any]) -> None:
    """Make sure that changes begin with a key that something reads, and keep the kind of a value.

    Raises:
        ValueError: one does not.
    """
    known = {*cfg.keys(), *signature(Runner).parameters, *_READ}
    for key, value in changes.items():
        name = key.partition(".")[0]
        if name not in known:
            raise ValueError(
                f"--cfg-options sets {key}, and nothing reads {name}{did_you_mean(name, known)}; "
                f"allowed are {', '.join(sorted(known))}"
            )
        before = _value(cfg, key)
        if None not in (before, value) and value not in AUTO and _kind(before) != _kind(value):
            raise ValueError(
                f"--cfg-options sets {key} to {value!r}; allowed is a {_kind(before)}, such as "
                f"{before!r}"
            )


def _value(cfg: Config, key: str) -> Any:
    """What is at a path of keys; None if nothing is."""
    value: Any = cfg
    for part in key.split("."):
        if not isinstance(value, Mapping) and not isinstance(value, Config):
            return None
        value = value.get(part)
    return value


def _kind(value: Any) -> str:
    kinds: dict[str, Any] = {"bool": bool, "number": Number, "text": str, "dict": Mapping}
    kinds["list"] = (list, tuple)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return "text"  # metrics and others are one or several
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "value")


def check_values(cfg: Config) -> None:
    """Make sure that numbers are possible, and that necks and heads fit the maps that they read.

    Raises:
        ValueError: a value is not possible or does not fit; the message names its key.
    """
    for key, least in _LEAST.items():
        value = _value(cfg, key)
        kind, kinds = (float, "numbers") if key.endswith(".lr") else (int, "whole numbers")
        if not isinstance(value, (int, float)):
            continue
        if not isinstance(value, (int, kind)) or value < least:
            raise ValueError(f"{key} is {value}; allowed are {kinds} from {least}")
    neck = _value(cfg, "model.neck")
    if isinstance(neck, Mapping) and isinstance(neck.get("out_channels"), int):
        _check_fit(cfg, neck)


def _check_fit(cfg: Config, neck: Mapping[str, Any]) -> None:
    for key, value, wanted in _fits(cfg, neck):
        if value != wanted:
            raise ValueError(f"{key} is {value}; allowed is {wanted}, as what it reads has it")
    maps = neck.get("num_outs") or 0
    for key, least in (
        ("model.rpn_head.anchor_generator.strides", maps),
        ("model.roi_head.bbox_roi_extractor.featmap_strides", 1),
    ):
        strides = _value(cfg, key)
        if maps and isinstance(strides, (list, tuple)) and not least <= len(strides) <= maps:
            raise ValueError(f"{key} has {len(strides)} strides; the neck has {maps} maps")


def _fits(cfg: Config, neck: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Channels: a key, its value, and what it must be."""
    backbone = cfg.model.get("backbone")
    given = neck.get("in_channels")
    if _family(backbone) and isinstance(given, (list, tuple)) and given not in AUTO:
        filled = fill_channels({"backbone": backbone, "neck": {**neck, "in_channels": ["auto"]}})
        key = "model.neck.in_channels, for model.backbone.out_indices,"
        yield key, list(given), filled["neck"]["in_channels"]
    wanted = neck["out_channels"]
    keys = ["model.rpn_head.in_channels", "model.roi_head.bbox_roi_extractor.out_channels"]
    if not _value(cfg, "model.roi_head.shared_head"):
        keys += ["model.roi_head.bbox_head.in_channels", "model.roi_head.mask_head.in_channels"]
    for key in keys:
        if isinstance(value := _value(cfg, key), int):
            yield key, value, wanted


def _family(backbone: Any) -> type[MMDetInterface] | None:
    """The backbone's class, if it is one of ours."""
    kind = (backbone or {}).get("type", "")
    family = MODELS.get(kind) if isinstance(kind, str) else kind
    return family if isinstance(family, type) and issubclass(family, MMDetInterface) else None


def check_backbone(cfg: Config) -> None:
    """Make sure that the backbone has the variant and the arguments, where it is one of ours.

    Raises:
        ValueError: there is no such variant or argument.
    """
    backbone = dict(cfg.get("model", {}).get("backbone") or {})
    if family := _family(backbone):
        kind = backbone.pop("type")
        name = kind if isinstance(kind, str) else family.__name__
        check_arguments(f"model.backbone, {name},", backbone, family.argument_names())
        family.find_variant(backbone.get("variant", family.default_variant))
