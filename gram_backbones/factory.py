"""Models by name, with fresh weights or with a file's: ``create_model``."""

from __future__ import annotations

from typing import Any

from .registry import build_model
from .staged import StagedBackbone
from .weights import load_weights, weight_source


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    features_only: bool = False,
    weights: str | None = None,
    **kwargs: Any,
) -> StagedBackbone:
    """Build a model, with fresh weights or with a file's.

    Args:
        name: one of :func:`gram_backbones.list_models`.
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
    model = build_model(name, num_classes=num_classes, features_only=features_only, **kwargs)
    if weights is not None:
        load_weights(model, weight_source(name, weights))
    return model
