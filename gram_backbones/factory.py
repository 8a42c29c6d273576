"""Models by name, with fresh weights or with weights from a file: ``create_model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .registry import build_model, find_variant
from .staged import StagedBackbone
from .suggestions import check_arguments
from .weights import load_weights


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    features_only: bool = False,
    weights: str | Path | None = None,
    accept_license: str | None = None,
    **kwargs: Any,
) -> StagedBackbone:
    """Build a model, with fresh weights or with weights from a file.

    Args:
        name: one of :func:`gram_backbones.list_models`.
        num_classes: outputs of the classifier; 0 returns the pooled features ``(B, C)``.
        features_only: no classifier; the model returns feature maps by name, or a tuple of them if
            ``out_indices`` is given.
        weights: None, or what fills the model: a name or tag of ``list_weights()``, a path, or an
            ``https://`` address with a hash. A classifier for another number of classes keeps its
            fresh weights.
        accept_license: see :func:`gram_backbones.load_weights`; ``"research only"`` for the files
            of AOGNet's authors.
        kwargs: passed to the network, for instance ``out_features``, ``norm``, ``with_cp``.

    Raises:
        FileNotFoundError: there is no such weight file.
        ValueError: unknown name, an argument that the network refuses, or weights that do not fit.

    Examples:
        >>> import torch
        >>> images = torch.randn(2, 3, 64, 64)
        >>> model = create_model("dgnet_r18", num_classes=10)
        >>> model(images).shape
        torch.Size([2, 10])
        >>> model = create_model("aognet_4m", features_only=True, out_features=("res3", "res5"))
        >>> {name: tuple(x.shape) for name, x in model(images).items()}
        {'res3': (2, 120, 8, 8), 'res5': (2, 640, 2, 2)}
    """
    own = {"features_only", "weights", "accept_license"}
    networks = find_variant(name).network.argument_names() - {"variant"}
    check_arguments(name, kwargs, own | networks)
    model = build_model(name, num_classes=num_classes, features_only=features_only, **kwargs)
    if weights is not None:
        load_weights(model, weights, accept_license=accept_license)
    return model
