"""Operations on whole feature maps: bound by memory, so maps are read as few times as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Weights = Tensor | Sequence[Sequence[float]] | None

# Elements handled at a time: few enough for a cache that cores share, many enough that the number
# of calls does not count. Of 2^18 to 2^24, those from 2^22 on were the fastest.
_PIECE = 2**22


def weighted_sum(
    features: Sequence[Tensor],
    weights: Weights,
    images: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """Σ_k weights[:, k] · features[k] over some images of a batch.

    Args:
        features: k maps ``(B, C, H, W)``.
        weights: ``(B', k)``, or None for weight 1. Plain numbers instead of a tensor say that no
            gradient is wanted and that the features are on the CPU.
        images: indices ``(B',)`` of the images to take; None takes all, and B' is B.
        scratch: a tensor that the result may be written into, where no gradient is wanted; fresh
            memory costs as much as reading a map.

    Returns:
        ``(B', C, H, W)`` in the features' dtype; the one feature itself where nothing is to be
        computed, so do not write into the result.
    """
    if weights is None:
        if images is not None:
            features = [feature[images] for feature in features]
        return features[0] if len(features) == 1 else torch.stack(tuple(features)).sum(0)
    first = features[0]
    if not isinstance(weights, Tensor):
        if all(feature.is_contiguous() for feature in features):
            return _sum_in_pieces(features, weights, images, scratch)
        weights = torch.tensor(weights, dtype=first.dtype)
    if images is not None:
        features = [feature[images] for feature in features]
    columns = weights.to(first.dtype)[:, :, None, None, None].unbind(1)
    total = features[0] * columns[0]
    for feature, column in zip(features[1:], columns[1:]):
        total = torch.addcmul(total, feature, column)
    return total


def _sum_in_pieces(
    features: Sequence[Tensor],
    weights: Sequence[Sequence[float]],
    images: Tensor | None,
    scratch: Tensor | None,
) -> Tensor:
    """Inference on CPU: each map is read once per sum, and closed edges not at all."""
    first = features[0]
    chosen = range(first.shape[0]) if images is None else images.tolist()
    out = scratch
    if out is None or out.dtype != first.dtype or len(out) < len(chosen):
        out = torch.empty((len(chosen), *first.shape[1:]), dtype=first.dtype)
    out = out[: len(chosen)]
    for row, image, factors in zip(out, chosen, weights):
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


def add_activate_pool(
    out: Tensor, shortcut: Tensor, weights: Weights = None, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """relu(out + weights · shortcut) and its mean, in one pass over memory; inference on CPU only.

    Args:
        out, shortcut: contiguous maps ``(B, C, H, W)``.
        weights: one number per image, ``(B, 1)``; None for 1.
        target: gets the result; ``out`` itself by default.

    Returns:
        The result and its means ``(B, C)``.
    """
    batch, channels, height, width = out.shape
    target = out if target is None else target
    means = out.new_empty(batch, channels)
    step = max(1, _PIECE // (height * width))
    for b in range(batch):
        factor = 1.0 if weights is None else weights[b][0]
        for start in range(0, channels, step):
            at = slice(start, start + step)
            piece = target[b, at]
            torch.add(out[b, at], shortcut[b, at], alpha=factor, out=piece)
            torch.mean(piece.relu_(), (1, 2), out=means[b, at])
    return target, means


# Memory of a stage's feature maps, kept for the next stage and the next image: asking the system
# for fresh pages costs more than the sums themselves. At most one piece is kept.
_KEPT: list[Tensor] = []
_KEEP_AT_MOST = 2**29  # bytes


@contextmanager
def borrowed_maps(like: Tensor, count: int) -> Iterator[Tensor | None]:
    """``count`` maps of the shape and type of ``like``, stacked, to write into in the context.

    None where they would take more memory than is kept between uses.
    """
    size = like.numel() * like.element_size() * count
    if not 0 < size <= _KEEP_AT_MOST:
        yield None
        return
    try:
        memory = _KEPT.pop()  # another thread finds none and makes its own
    except IndexError:
        memory = None
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):  # it must stay writable after inference mode
            memory = torch.empty(size, dtype=torch.uint8)
    try:
        yield memory[:size].view(like.dtype).view(count, *like.shape)
    finally:
        if not _KEPT:
            _KEPT.append(memory)
