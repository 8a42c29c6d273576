"""All models by name: ``list_models()`` and ``create_model(name, ...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib import import_module
from typing import Any

from torch import nn

# Modules that register models when imported.
_FAMILIES = ("aognet", "dgnet")
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_models(names: Iterable[str], build: Callable[..., nn.Module]) -> None:
    """Make ``build(name, **kwargs)`` the builder of each of ``names``."""
    for name in names:
        if name in _BUILDERS:
            raise ValueError(f"a model named {name!r} is registered already")
        _BUILDERS[name] = build


def _builders() -> dict[str, Callable[..., nn.Module]]:
    for family in _FAMILIES:
        import_module(f"gram_backbones.{family}")
    return _BUILDERS


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted."""
    return sorted(name for name in _builders() if fnmatch(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    features_only: bool = False,
    weights: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model, with fresh weights or with a file's.

    Args:
        name: one of :func:`list_models`.
        num_classes: outputs of the classifier; 0 returns the pooled features ``(B, C)``.
        features_only: no classifier; the model returns feature maps, by name or by index as its
            ``out_features`` says.
        weights: None, or what fills the model: a name or tag of ``list_weights()``, a path, or an
            ``https://`` address with a hash. A classifier for another number of classes keeps its
            fresh weights.
        kwargs: passed to the network, for instance ``out_features``, ``norm``, ``with_cp``.

    Raises:
        FileNotFoundError: there is no such weight file.
        ValueError: unknown name, an argument that the network refuses, or weights that do not fit.
    """
    builders = _builders()
    if name not in builders:
        raise ValueError(f"there is no model named {name!r}; allowed are {list_models()}")
    model = builders[name](name, num_classes=None if features_only else num_classes, **kwargs)
    if weights is not None:
        # These import the families, and so this module.
        from .weights.fit import load_weights
        from .weights.records import weight_source

        load_weights(model, weight_source(name, weights))
    return model
