"""The table of AOGNets: words, blocks, widths and pruning of every stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..grammar import AndOrGraph, build_graph
from ..preprocessing import CIFAR_RGB, IMAGENET_RGB, Preprocessing
from ..staged import FEATURES, Variant
from .names import NAMINGS, from_second_naming, is_second_naming

STEM_STRIDES = {"imagenet": 4, "cifar": 1}


@dataclass(frozen=True)
class AOGNetVariant(Variant):
    """One row of the table of variants.

    Attributes:
        words: primitive size N of each stage.
        blocks: number of blocks of each stage.
        channels: widths after the stem and after each stage.
        pruning: pruning of each stage's graph (section 3.3), None for the full structure.
        lateral: lateral connections (section 3.1).
        scale_lateral_skip, concat_by_id: see :class:`gram_backbones.grammar.AndOrGraph`; the
            defaults follow the paper, the ``*_released`` rows the authors' checkpoints.
        stem: ``"imagenet"``, three 3×3 convolutions and pooling with a total stride of 4
            (section 4.2), or ``"cifar"``, one 3×3 convolution with stride 1.
        preprocessing, recipes: see :class:`gram_backbones.staged.Variant`.

    Examples:
        >>> import torch
        >>> from gram_backbones import AOGNet
        >>> pruning = ("keep_first", None)  # of the first stage only
        >>> row = AOGNetVariant((2, 4), blocks=(1, 2), channels=(16, 32, 64), pruning=pruning)
        >>> row.strides
        {'stem': 4, 'res2': 4, 'res3': 8}
        >>> [tuple(x.shape) for x in AOGNet(row)(torch.randn(2, 3, 64, 64)).values()]
        [(2, 32, 16, 16), (2, 64, 8, 8)]
    """

    words: tuple[int, ...]
    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    pruning: tuple[str | None, ...] = ("keep_first", "keep_last", "keep_first", "keep_last")
    lateral: bool = True
    scale_lateral_skip: bool = True
    concat_by_id: bool = False
    stem: str = "imagenet"
    preprocessing: Preprocessing = IMAGENET_RGB
    recipes: tuple[tuple[str, str], ...] = (
        ("cifar*", "aognet_cifar"),
        ("folder", "aognet_imagenet"),
    )

    def __post_init__(self):
        stages = len(self.words)
        if not 1 <= stages <= len(FEATURES) - 1:
            raise ValueError(f"words is {self.words}; allowed are 1 to {len(FEATURES) - 1} stages")
        for name, wanted in (("blocks", stages), ("channels", stages + 1), ("pruning", stages)):
            given = getattr(self, name)
            if len(given) != wanted:
                raise ValueError(f"{name} is {given}; with words {self.words} it takes {wanted}")
        if min(self.blocks) < 1 or min(self.channels) < 1:
            raise ValueError(f"blocks {self.blocks} and channels {self.channels} must be positive")
        if self.stem not in STEM_STRIDES:
            raise ValueError(f"stem is {self.stem!r}; allowed are {sorted(STEM_STRIDES)}")

    first_conv = "stem.0.0"
    namings = NAMINGS
    added = without_decay = (".scales",)  # learned λ's
    stem_paths = property(
        lambda self: tuple(f"stem.{i}" for i in range(4 if self.stem == "imagenet" else 1))
    )

    def read_names(self, found: Iterable[str]) -> tuple[str, Mapping[str, str]] | None:
        """Our names for those of the second release of the authors' weights."""
        found = list(found)
        return ("authors", from_second_naming(found)) if is_second_naming(found) else None

    @property
    def strides(self) -> dict[str, int]:
        """Total strides of the stem and of every stage; each stage but the first halves."""
        first = STEM_STRIDES[self.stem]
        stages = {name: first << i for i, name in enumerate(FEATURES[1 : len(self.words) + 1])}
        return {"stem": first, **stages}

    def feature_shapes(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Channels and total strides of the stem and of every stage, as the row says."""
        return dict(zip(self.strides, self.channels)), self.strides

    def graph(self, stage: int) -> AndOrGraph:
        """The And-Or graph of one stage's blocks (``stage`` counts from 0)."""
        return build_graph(
            self.words[stage],
            pruning=self.pruning[stage],
            lateral=self.lateral,
            scale_lateral_skip=self.scale_lateral_skip,
            concat_by_id=self.concat_by_id,
        )


_AUTHORS: dict[str, Any] = dict(scale_lateral_skip=False, concat_by_id=True)
# Table 5's rows in its order. It gives parameters and FLOPs, but no widths: these are the result of
# a search [choice] over stages of one block each that meets both figures to their printed digits.
_CIFAR: dict[str, Any] = dict(
    stem="cifar", preprocessing=CIFAR_RGB, recipes=(("*", "aognet_cifar"),)
)
_FULL = AOGNetVariant(
    (4, 4, 4), (1, 1, 1), (80, 124, 220, 476), pruning=(None,) * 3, lateral=False, **_CIFAR
)
_PRUNED = AOGNetVariant(
    (4, 4, 4),
    (1, 1, 1),
    (80, 160, 308, 568),
    pruning=("keep_first", "keep_last", "keep_first"),
    lateral=False,
    **_CIFAR,
)
# Table 5's ablations at the size of CIFAR's ResNet-20 [choice]: widths are the result of a search,
# and parameters and FLOPs within 1 % of ResNet-20's (269,722 and 40.55 M) and of each other's.
_SMALL: dict[str, Any] = dict(words=(2, 4, 4), recipes=(("*", "cifar_small"),))
_SMALL_FULL = replace(_FULL, channels=(20, 44, 64, 112), **_SMALL)
_SMALL_PRUNED = replace(_PRUNED, channels=(20, 44, 80, 140), **_SMALL)
# fmt: off
VARIANTS = {
    "aognet_4m": AOGNetVariant((2, 4, 4, 2), (1, 1, 3, 1), (16, 56, 120, 256, 640)),
    "aognet_12m": AOGNetVariant((2, 4, 4, 2), (2, 1, 3, 1), (32, 128, 256, 512, 936)),
    "aognet_40m": AOGNetVariant((2, 4, 4, 2), (2, 1, 4, 1), (60, 240, 448, 968, 1440)),
    "aognet_60m": AOGNetVariant((2, 4, 4, 2), (2, 2, 5, 1), (64, 256, 512, 1160, 1400)),
    "aognet_12m_released": AOGNetVariant(
        (2, 2, 4, 4), (2, 2, 2, 1), (32, 128, 256, 512, 824), **_AUTHORS),
    "aognet_40m_released": AOGNetVariant(
        (2, 2, 4, 4), (2, 2, 3, 1), (56, 224, 448, 896, 1400), **_AUTHORS),
    "aognet_cifar_full": _FULL,
    "aognet_cifar_full_lateral": replace(_FULL, lateral=True),
    "aognet_cifar_pruned": _PRUNED,
    "aognet_cifar_pruned_lateral": replace(_PRUNED, lateral=True),
    "aognet_cifar_s_full": _SMALL_FULL,
    "aognet_cifar_s_pruned": _SMALL_PRUNED,
    "aognet_cifar_s_pruned_lateral": replace(_SMALL_PRUNED, lateral=True),
}
# fmt: on
