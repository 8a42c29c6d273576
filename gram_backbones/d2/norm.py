"""Norms by Detectron2's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import nn

from ..folding import FROZEN_NORMS
from ..layers import group_norm

FROZEN_NORMS.add(FrozenBatchNorm2d)


def norm_factory(name: str) -> Callable[[int], nn.Module]:
    """``channels -> module`` for a norm of Detectron2's ``get_norm``; GN adapts its group count.

    Raises:
        ValueError: ``get_norm`` does not know the name.
    """
    if name == "GN":
        return group_norm
    try:
        made = get_norm(name, 1)
    except KeyError:
        made = None
    if made is None:
        allowed = [
            "BN",
            "FrozenBN",
            "GN",
            "LN",
            "SyncBN",
            "naiveSyncBN",
            "naiveSyncBN_N",
            "nnSyncBN",
        ]
        raise ValueError(f"NORM is {name!r}; allowed are {allowed}")
    return partial(get_norm, name)
