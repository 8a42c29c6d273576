"""Weighted sums of feature maps, and their means without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Height and width per image. While a detector is traced they are tensors (2,).
ValidSizes = Sequence[tuple[int, int] | Tensor]


def weighted_sum(
    features: Sequence[Tensor],
    weights: Tensor | None,
    addcmul: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.addcmul,
) -> Tensor:
    """Σ_k weights[:, k] · features[k].

    Args:
        features: k maps ``(B, C, H, W)``.
        weights: ``(B, k)``, or None for weight 1.
        addcmul: adds a product to the sum so far; ``torch.Tensor.addcmul_`` does it in place,
            which `torch.func.vmap` does not know.

    Returns:
        ``(B, C, H, W)`` in the features' dtype; the one feature itself where nothing is to be
        computed, so do not write into the result.

    Examples:
        >>> weighted_sum([torch.ones(1, 8, 4, 4)] * 2, torch.tensor([[0.25, 0.5]]))[0, 0, 0, 0]
        tensor(0.7500)
    """
    if weights is None:
        return features[0] if len(features) == 1 else torch.stack(tuple(features)).sum(0)
    weights = weights.to(features[0].dtype)
    total = features[0] * weights[:, 0, None, None, None]
    for k, feature in enumerate(features[1:], 1):
        total = addcmul(total, feature, weights[:, k, None, None, None])
    return total


def stage_sizes(valid_sizes: ValidSizes, stride: int) -> ValidSizes:
    """Sizes in pixels as sizes in the feature maps of a stride, rounded up.

    Examples:
        >>> stage_sizes([(65, 96)], 32)
        [(3, 3)]
    """
    return [
        (size + stride - 1) // stride
        if isinstance(size, Tensor)
        else (-(-size[0] // stride), -(-size[1] // stride))
        for size in valid_sizes
    ]


def mean_over_valid(x: Tensor, valid_sizes: ValidSizes | None, dtype: torch.dtype) -> Tensor:
    """Mean over the valid part of each image's map; 0 where nothing is valid.

    Args:
        x: maps ``(B, C, H, W)``.
        valid_sizes: height and width per image, in ``x``; None for all of it.
        dtype: what to compute in and return.

    Returns:
        ``(B, C)``.
    """
    if valid_sizes is None or len(valid_sizes) == 0:
        return x.mean((2, 3), dtype=dtype)
    if tensors := [size for size in valid_sizes if isinstance(size, Tensor)]:
        sizes = torch.stack(tensors).to(x.device)
    elif all(tuple(size) == tuple(x.shape[2:]) for size in valid_sizes):
        return x.mean((2, 3), dtype=dtype)
    else:
        sizes = torch.tensor(valid_sizes, device=x.device)
    rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]
    valid = (rows[:, :, None] & columns[:, None, :])[:, None]
    count = valid.sum((2, 3)).clamp(min=1)
    return torch.where(valid, x, 0).sum((2, 3), dtype=dtype) / count
