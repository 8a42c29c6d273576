"""Finding a network's tensors in a file, under any known names and prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

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
# Where the frameworks' C4 detectors keep the last stage.
C4_HEADS = {"d2": "roi_heads.res5.", "mmdet": "roi_head.shared_head."}


def meta_tensors(variant: Variant) -> Mapping[str, Tensor]:
    """All tensors of a variant's classifier for 1000 classes, without their values.

    Examples:
        >>> from gram_backbones import AOGNet
        >>> meta_tensors(AOGNet.find_variant("aognet_4m"))["fc.weight"].shape
        torch.Size([1000, 640])
    """
    try:
        return _remembered_tensors(variant)
    except TypeError:  # a record that holds lists cannot be cached
        return _tensors(variant)


class _Unfilled(TorchFunctionMode):
    """A context in which no random numbers are drawn, the slowest part on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if func in (init.normal_, init.uniform_, init.kaiming_uniform_):
            return (kwargs or {}).get("tensor", *args[:1])
        return func(*args, **(kwargs or {}))


def _tensors(variant: Variant) -> Mapping[str, Tensor]:
    with torch.device("meta"), _Unfilled():
        return variant.build(num_classes=1000).state_dict()


_remembered_tensors = lru_cache(maxsize=64)(_tensors)


def find_names(variant: Variant, found: Iterable[str]) -> tuple[str, str, dict[str, str]]:
    """The naming and prefix under which most of a network's tensors are found.

    Args:
        variant: row that the network is built from.
        found: names in a file, in its order.

    Returns:
        The name of the naming, the prefix, and our names by the names in the file.
    """
    ours, found = meta_tensors(variant), list(found)
    if (read := variant.read_names(found)) is not None:
        naming, names = read
        return naming, "", {name: mine for name, mine in names.items() if mine in ours}
    found = dict.fromkeys(found)
    best: tuple[str, str, dict[str, str]] = ("own", "", {})
    for naming, rename in variant.namings.items():
        renamed = {rename(mine): mine for mine in ours}
        for prefix in PREFIXES:
            names = {name: mine for new, mine in renamed.items() if (name := prefix + new) in found}
            if prefix.endswith("backbone."):
                root = prefix.removesuffix("backbone.")
                heads = [
                    head
                    for head in C4_HEADS.values()
                    if any(name.startswith(root + head) for name in found)
                ]
                names |= {
                    name: mine
                    for head in heads
                    for mine in ours
                    if (name := root + name_in_head(variant, head, mine)) in found
                }
            if len(names) > len(best[2]):
                best = naming, prefix, names
    return best


def name_in_head(variant: Variant, head: str, name: str) -> str:
    """Name of a tensor of the last stage in a C4 detector, which keeps it in its RoI heads.

    Args:
        variant: row that the network is built from.
        head: one of ``C4_HEADS``.
        name: the tensor's in the whole network.
    """
    return head + name.removeprefix(variant.place_of("res5"))
