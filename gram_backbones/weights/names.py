"""Finding a network's tensors in a file, under any known names and prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch

from ..staged import Variant

# Prefixes of a backbone's names: from data parallelism, the authors' checkpoints, detectors
# (Detectron2 with and without FPN, MMDetection) and training scripts.
PREFIXES = (
    "",
    "module.",
    "network.",
    "module.network.",
    "backbone.bottom_up.",
    "backbone.",
    "module.backbone.bottom_up.",
    "module.backbone.",
    "model.",
    "_orig_mod.",
)
# Where a C4 detector keeps the last stage: Detectron2, MMDetection.
HEAD_PREFIXES = ("roi_heads.res5.", "roi_head.shared_head.")


def tensor_shapes(variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a variant's classifier for 1000 classes.

    Examples:
        >>> from gram_backbones import AOGNet
        >>> tensor_shapes(AOGNet.find_variant("aognet_4m"))["fc.weight"]
        (1000, 640)
    """
    try:
        return _remembered_shapes(variant)
    except TypeError:  # a record that holds lists cannot be cached
        return _shapes(variant)


def _shapes(variant: Variant) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {n: tuple(v.shape) for n, v in variant.build(num_classes=1000).state_dict().items()}


_remembered_shapes = lru_cache(maxsize=64)(_shapes)


def find_names(variant: Variant, found: Iterable[str]) -> tuple[str, str, dict[str, str]]:
    """The naming and prefix under which most of a network's tensors are found.

    Args:
        variant: row that the network is built from.
        found: names in a file, in its order.

    Returns:
        The name of the naming, the prefix, and our names by the names in the file.
    """
    ours, found = dict.fromkeys(tensor_shapes(variant)), list(found)
    if (read := variant.read_names(found)) is not None:
        naming, names = read
        return naming, "", {name: mine for name, mine in names.items() if mine in ours}
    found = dict.fromkeys(found)
    best: tuple[str, str, dict[str, str]] = ("own", "", {})
    for naming, rename in variant.namings.items():
        for prefix in PREFIXES:
            names = {name: mine for mine in ours if (name := prefix + rename(mine)) in found}
            if prefix.endswith("backbone."):
                names |= _head_names(found, ours, prefix.removesuffix("backbone."))
            if len(names) > len(best[2]):
                best = naming, prefix, names
    return best


def _head_names(found: Iterable[str], ours: Mapping[str, None], prefix: str) -> dict[str, str]:
    """The last stage of a C4 detector, which is in its RoI heads under our own names."""
    names: dict[str, str] = {}
    for name in found:
        for head in HEAD_PREFIXES:
            if name.startswith(prefix + head):
                part = name.removeprefix(prefix + head)
                # AOGNet's stage is the head's module itself; DG-Net's is inside it.
                mine = next((n for n in (part, f"res5.{part}") if n in ours), None)
                names |= {name: mine} if mine else {}
    return names
