"""What backbones of several stages have in common: features by name or index, freezing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from .layers import freeze

FEATURES = ("stem", "res2", "res3", "res4", "res5")


V = TypeVar("V")


def pick_variant(variants: Mapping[str, V], variant: str | V, **changes) -> V:
    """A row of a family's table by name, or a record as it is, with some of its fields changed.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(variant, str):
        if variant not in variants:
            raise ValueError(f"variant is {variant!r}; allowed are {sorted(variants)}")
        variant = variants[variant]
    return replace(variant, **changes)


class StagedBackbone(nn.Module):
    """Base of the families: a stem and up to four stages, called ``res2`` to ``res5``.

    A family's constructor calls :meth:`_plan_features` first, builds :attr:`stage_names`,
    and ends with ``self.train()``. It implements :meth:`forward_features` and, where a stage is not
    one module of the stage's name, :meth:`feature_modules`.

    Attributes:
        feature_channels: channels of ``stem`` and of every stage that is built, by name.
        feature_strides: their total strides.
        size_divisibility: stride of the deepest stage that is built.
    """

    def _plan_features(
        self,
        channels: dict[str, int],
        strides: dict[str, int],
        out_features: Sequence[str | int] | None,
        num_classes: int | None,
        frozen_stages: int,
    ) -> None:
        """Settle which stages are built, returned and frozen, before anything is built.

        Raises:
            ValueError: features that do not exist, features of a classifier, or ``frozen_stages``
                beyond the stages that are built.
        """
        names = tuple(channels)
        if out_features is not None and num_classes is not None:
            raise ValueError(
                "a classifier returns no feature maps: give out_features or num_classes"
            )
        self.by_index = bool(out_features) and isinstance(out_features[0], int)
        self.out_features = _feature_names(out_features, names)
        self.num_classes = num_classes
        depth = len(names) - 1
        if num_classes is None:
            depth = max(map(names.index, self.out_features))
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f"frozen_stages is {frozen_stages}; allowed are -1 to {depth}")
        self.frozen_stages = frozen_stages
        self.stage_names = names[1 : depth + 1]
        self.feature_channels = {name: channels[name] for name in names[: depth + 1]}
        self.feature_strides = {name: strides[name] for name in names[: depth + 1]}

    @property
    def size_divisibility(self) -> int:
        """Stride of the deepest stage that is built."""
        return max(self.feature_strides.values())

    def wanted_features(self) -> tuple[str, ...]:
        """Names of the features that a forward pass has to keep."""
        return self.out_features if self.num_classes is None else self.stage_names[-1:]

    def pack_features(self, features: dict[str, Tensor]) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """The features as they were asked for: a dict by name, or a tuple by index."""
        return tuple(features.values()) if self.by_index else features

    def feature_modules(self, name: str) -> list[nn.Module]:
        """All modules that compute one feature from the one before."""
        return [getattr(self, name)]

    def train(self, mode: bool = True) -> StagedBackbone:
        """Set the mode; frozen stages stay in eval mode and without gradients."""
        super().train(mode)
        for name in FEATURES[: self.frozen_stages + 1]:
            for module in self.feature_modules(name):
                freeze(module)
        return self


def _feature_names(wanted: Sequence[str | int] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted features as names, shallow to deep.

    Raises:
        ValueError: nothing wanted, an unknown or repeated one, or names mixed with indices.
    """
    if wanted is None:
        return names[1:]
    indices = dict(enumerate(names[1:]))
    known = indices if all(isinstance(item, int) for item in wanted) else dict(zip(names, names))
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(known):
        raise ValueError(
            f"out_features is {tuple(wanted)}; allowed are distinct names out of {names} "
            f"or distinct indices out of {tuple(indices)}"
        )
    return tuple(sorted((known[item] for item in wanted), key=names.index))
