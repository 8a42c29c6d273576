"""All models by name, with fresh weights: which families there are, and their variants."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from .aognet import AOGNet
from .dgnet import DGNet
from .staged import StagedBackbone, Variant

_FAMILIES: list[type[StagedBackbone]] = [AOGNet, DGNet]


def register_family(family: type[StagedBackbone]) -> type[StagedBackbone]:
    """Make the rows of a family's table models; also a class decorator.

    Raises:
        ValueError: a model of one of its names is registered already.
    """
    if taken := sorted({name for f in _FAMILIES for name in f.VARIANTS} & set(family.VARIANTS)):
        raise ValueError(f"models named {taken} are registered already")
    _FAMILIES.append(family)
    return family


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted."""
    return sorted(name for f in _FAMILIES for name in f.VARIANTS if fnmatch(name, pattern))


def find_variant(name: str) -> Variant:
    """The row of the model of a name.

    Raises:
        ValueError: unknown name.
    """
    for family in _FAMILIES:
        if name in family.VARIANTS:
            return family.VARIANTS[name]
    raise ValueError(f"there is no model named {name!r}; allowed are {list_models()}")


def build_model(
    name: str, *, num_classes: int = 1000, features_only: bool = False, **options: Any
) -> StagedBackbone:
    """A model with fresh weights; arguments as in :func:`gram_backbones.create_model`."""
    return find_variant(name).build(num_classes=None if features_only else num_classes, **options)
