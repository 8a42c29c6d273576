"""Eager inference that leaves out closed edges, and blocks that no open edge feeds.

An optimisation of `gram_backbones.dgnet.graph`, which can be taken off: what is left out has
weight 0 there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layers import is_traced
from .sums import weighted_sum

if TYPE_CHECKING:
    from .graph import DynamicGraph, _DynamicEdges

logger = logging.getLogger(__name__)


# Layers that compute otherwise in training mode.
_MODES = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def can_skip(x: Tensor, blocks: Iterable[nn.Module]) -> bool:
    """Whether edges may be looked at: without gradients, on a real tensor that nothing traces.

    Python's choice of edges would otherwise be baked into a trace, and fit one image only. Nor may
    a norm be in training mode, as where BN statistics are estimated anew: they are of all images.
    """
    if is_traced(x):
        return not _say_plain_once()
    if torch.is_grad_enabled() or x.shape[0] == 0:
        return False
    modules = (module for block in blocks for module in block.modules())
    return not any(module.training for module in modules if isinstance(module, _MODES))


_SAID: set[bool] = set()


@torch.compiler.assume_constant_result
def _say_plain_once() -> bool:
    if not _SAID:
        _SAID.add(True)
        logger.info(
            "DG-Net is traced, or has no values to look at: every edge is computed, closed ones "
            "with weight 0"
        )
    return True


def run_open_edges(
    graph: DynamicGraph, edges: _DynamicEdges, x: Tensor, x0: Tensor, blocks: Sequence[nn.Module]
) -> Tensor:
    """The stage's output ``(B, C, H, W)``; each block runs on the images that feed it.

    Args:
        graph: gives the nodes.
        edges: gives the weights.
        x: stage input ``(B, C_in, H_in, W_in)``.
        x0: the same in the stage's shape.
        blocks: of the stage.
    """
    features = [x0]
    edges.leave(0, x0)
    for j, block in enumerate(blocks, 1):
        _, weights = edges.into(j)
        images, sources = _open(weights)
        if not images:
            features.append(x0)  # any map does: all edges out of this node are closed
        else:
            inputs = [x] if j == 1 else [features[i] for i in sources]
            weights, base = weights[:, sources], x0
            if len(images) < len(x):
                chosen = torch.tensor(images, device=x.device)
                *inputs, weights, base = (t[chosen] for t in (*inputs, weights, base))
            out = graph.run_node(j, block, _sum(inputs, weights), weights, base, consume=True)
            if len(images) < len(x):
                out = out.new_zeros(len(x), *out.shape[1:]).index_copy_(0, chosen, out)
            features.append(out)
        edges.leave(j, features[j])
    _, weights = edges.into(len(blocks) + 1)
    _, sources = _open(weights)
    return _sum([features[i] for i in sources], weights[:, sources])


def _sum(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    # One new tensor for each sum: on a CPU the first touch of memory costs as much as the addition.
    return weighted_sum(features, weights, torch.Tensor.addcmul_)


def _open(weights: Tensor) -> tuple[list[int], list[int]]:
    """The images with an open edge among ``(B, k)`` weights, and the edges open for any image."""
    rows = weights.ne(0).tolist()
    images = [image for image, row in enumerate(rows) if any(row)]
    return images, [k for k, column in enumerate(zip(*rows)) if any(column)]
