"""What the connectivity of dynamic stages looks like over many images, in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .graph import DynamicGraph

SHARES = ("closed_edges", "closed_blocks")


def dynamic_stages(model: nn.Module) -> list[str]:
    """Names of the stages of a model whose edges are weighted for every image."""
    graphs = ((n, m) for n, m in model.named_modules() if isinstance(m, DynamicGraph))
    return [name for name, graph in graphs if graph.edges == "dynamic"]


def summarise(records: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Shares of closed edges and of closed blocks in recorded connectivity.

    A stage of n blocks has (n + 1)(n + 2) / 2 edges per image, and the shares are over the edges
    and blocks of all stages and images together.

    Args:
        records: by stage, matrices ``(B, n + 2, n + 2)`` as
            :func:`gram_backbones.record_connectivity` collects them in eval mode; row j holds the
            weights into node j. Take stages with dynamic edges only (:func:`dynamic_stages`): a
            fixed wiring does not have every edge.

    Returns:
        ``closed_edges``, the share of edges with weight 0, and ``closed_blocks``, the share of
        pairs of an image and a block where no edge into the block is open: inference leaves them
        out.

    Raises:
        ValueError: no images.

    Examples:
        >>> from gram_backbones import DGNet, record_connectivity
        >>> model = DGNet("dgnet_r18").eval()
        >>> with record_connectivity(model) as records:
        ...     features = model(torch.randn(2, 3, 64, 64))
        >>> summarise(records)
        {'closed_edges': 0.0, 'closed_blocks': 0.0}
    """
    totals: dict[str, float] = dict.fromkeys((*SHARES, "edges", "blocks"), 0)
    for matrix in (matrix for matrices in records.values() for matrix in matrices):
        images, size, _ = matrix.shape
        is_open = matrix.ne(0)
        is_edge = torch.ones_like(is_open[:1]).tril(-1)
        fed = is_open[:, 1:-1, :].any(2)
        totals["closed_edges"] += (is_edge & ~is_open).sum().item()
        totals["closed_blocks"] += (~fed).sum().item()
        totals["edges"] += images * size * (size - 1) // 2
        totals["blocks"] += images * (size - 2)
    if not totals["edges"]:
        raise ValueError("the records hold no images: run the model while it is recorded")
    return {
        "closed_edges": totals["closed_edges"] / totals["edges"],
        "closed_blocks": totals["closed_blocks"] / totals["blocks"],
    }
