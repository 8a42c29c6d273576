"""Norms by MMDetection's ``norm_cfg``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import nn

from ..layers import group_norm

ALLOWED = ("BN", "SyncBN", "GN")


def norm_factory(norm_cfg: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    """``channels -> module`` for a ``norm_cfg``; every other key is the layer's, as in mmcv.

    ``num_groups`` of GN is an upper limit, 32 by default: the widths of a grammar's nodes have
    other divisors.

    Raises:
        ValueError: the type is not BN, SyncBN or GN, or the layer does not take a key.
    """
    cfg = dict(norm_cfg or {})
    if cfg.get("type") not in ALLOWED:
        raise ValueError(f"norm_cfg is {norm_cfg}; allowed are types {ALLOWED}")
    if cfg["type"] == "GN":
        max_groups = cfg.pop("num_groups", 32)
        if max_groups < 1:
            raise ValueError(f"num_groups is {max_groups}; it must be at least 1")
        return partial(_adapted_group_norm, cfg, max_groups)
    try:
        build_norm_layer(cfg, 1)
    except TypeError as error:
        raise ValueError(
            f"norm_cfg is {norm_cfg}; {cfg['type']} does not take these arguments"
        ) from error
    return partial(_layer, cfg)


def _layer(cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(cfg, channels)[1]


def _adapted_group_norm(cfg: dict, max_groups: int, channels: int) -> nn.Module:
    groups = group_norm(channels, max_groups).num_groups
    return _layer({**cfg, "num_groups": groups}, channels)
