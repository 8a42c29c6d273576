"""Weighted sums of feature maps: bound by memory, so maps are read as few times as possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements of a piece of the sum that stays in a core's cache while all terms are added to it.
_PIECE = 2**18


def weighted_sum(
    features: Sequence[Tensor], weights: Tensor | None, images: Tensor | None = None
) -> Tensor:
    """Σ_k weights[:, k] · features[k] over some images of a batch.

    Args:
        features: k maps ``(B, C, H, W)``.
        weights: ``(B', k)``, or None for weight 1.
        images: indices ``(B',)`` of the images to take; None takes all, and B' is B.

    Returns:
        ``(B', C, H, W)`` in the features' dtype; the one feature itself where nothing is to be
        computed, so do not write into the result.
    """
    if weights is None:
        if images is not None:
            features = [feature[images] for feature in features]
        return features[0] if len(features) == 1 else torch.stack(tuple(features)).sum(0)
    differentiable = torch.is_grad_enabled() and (
        weights.requires_grad or any(feature.requires_grad for feature in features)
    )
    first = features[0]
    plain = first.device.type == "cpu" and all(f.is_contiguous() for f in features)
    if plain and not differentiable and not torch.compiler.is_compiling():
        return _sum_in_pieces(features, weights, images)
    if images is not None:
        features = [feature[images] for feature in features]
    columns = weights.to(first.dtype)[:, :, None, None, None].unbind(1)
    total = features[0] * columns[0]
    for feature, column in zip(features[1:], columns[1:]):
        total = torch.addcmul(total, feature, column)
    return total


def _sum_in_pieces(features: Sequence[Tensor], weights: Tensor, images: Tensor | None) -> Tensor:
    """Inference on CPU: each map is read once per sum, and closed edges not at all."""
    chosen = range(features[0].shape[0]) if images is None else images.tolist()
    out = torch.empty((len(chosen), *features[0].shape[1:]), dtype=features[0].dtype)
    for row, image, factors in zip(out, chosen, weights.tolist()):
        terms = [(f[image].view(-1), w) for f, w in zip(features, factors) if w != 0]
        flat = row.view(-1)
        if not terms:
            flat.zero_()
            continue
        (source, factor), *rest = terms
        for start in range(0, flat.numel(), _PIECE):
            piece = flat[start : start + _PIECE]
            torch.mul(source[start : start + _PIECE], factor, out=piece)
            for other, weight in rest:
                piece.add_(other[start : start + _PIECE], alpha=weight)
    return out
