"""A line in the log at the start of an evaluation: does DG-Net evaluate as it was trained?"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import is_traced
from .connectivity import dynamic_stages, summarise
from .graph import dynamic_graphs, record_connectivity, training_gate
from .network import DGNet, DGStage
from .rewire import DynamicStage

logger = logging.getLogger(__name__)

# The line is a warning above this relative distance of the features, or share of closed blocks.
TOLERANCE = 0.05
MOST_BLOCKS = 0.9


def report_gates(model: nn.Module, log: Callable[[int, str], Any] = logger.log) -> None:
    """Log the state of each DG-Net's edges once, with the next batch that it evaluates.

    The line gives the share of closed edges and blocks, and how far the features are from those
    with the edges weighed as in training: the norm of the difference over their norm, the largest
    of all features. It is a warning above 5 %, and where over 90 % of the blocks are closed.
    Nothing happens to models without dynamic edges, nor while a model is traced or compiled. The
    first batch is computed three times, which also shows where FLOPs are counted.

    Args:
        model: in evaluation mode, for instance a detector, a network or a rewired network.
        log: takes a level of :mod:`logging` and the line.

    Examples:
        >>> from gram_backbones import DGNet
        >>> model = DGNet("dgnet_r18").eval()
        >>> report_gates(model, lambda level, line: print(line.split(" of ")[0]))
        >>> features = model(torch.randn(1, 3, 64, 64))
        DG-Net: 0.0 %
    """
    roots = [m for m in model.modules() if isinstance(m, (DGNet, DGStage, DynamicStage))]
    roots = [root for root in roots if dynamic_stages(root)]
    if roots:
        _Report(roots, log)


class _Report:
    """A hook on the networks; the last one that has run writes the line."""

    def __init__(self, roots: Sequence[nn.Module], log: Callable[[int, str], Any]):
        self.log = log
        self.waiting = {id(root) for root in roots}
        self.records: dict[str, list[Tensor]] = {}
        self.distance = 0.0
        for root in roots:
            for earlier in getattr(root, "_gate_report", ()):  # of an evaluation that read nothing
                earlier.remove()
            handle = root.register_forward_hook(self, with_kwargs=True)
            root.__dict__["_gate_report"] = (handle,)

    @torch.no_grad()
    def __call__(self, root: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        maps = list(_tensors(output))
        if root.training or any(map(is_traced, maps)) or not any(map(torch.numel, maps)):
            return
        if id(root) not in self.waiting:  # a replica
            return
        for handle in root.__dict__.pop("_gate_report"):
            handle.remove()
        # Not root(…): its hooks have run.
        with _only_own_records(root) as records:
            found = root.forward(*args, **kwargs)
        with _only_own_records(root), training_gate(root):
            wanted = root.forward(*args, **kwargs)
        self.records |= {f"{id(root)}.{name}": records[name] for name in dynamic_stages(root)}
        pairs = zip(_tensors(found), _tensors(wanted), strict=True)
        self.distance = max([self.distance, *(_distance(a, b) for a, b in pairs if a.numel())])
        self.waiting.discard(id(root))
        if not self.waiting and any(len(m) for ms in self.records.values() for m in ms):
            self._write()

    def _write(self) -> None:
        shares = summarise(self.records)
        line = (
            f"DG-Net: {shares['closed_edges']:.1%} of the edges and {shares['closed_blocks']:.1%} "
            f"of the blocks are closed in the first batch; its features are {self.distance:.2%} "
            "away from those with the gate of training"
        ).replace("%", " %")
        warnings = []
        if self.distance > TOLERANCE:
            warnings.append(
                "Above 5 % the network does not evaluate as it was trained: evaluate with "
                "gate='soft' what was trained with gate='paper', or train with the default gate."
            )
        if shares["closed_blocks"] > MOST_BLOCKS:
            warnings.append(
                "With almost all blocks closed it computes next to nothing: train with the default "
                "router_bias and side_bias, or a lower learning rate."
            )
        level = logging.WARNING if warnings else logging.INFO
        self.log(level, ". ".join([line, " ".join(warnings)]) if warnings else line)

    def __reduce__(self) -> tuple:
        # Copies of a model, and files of it, do not report.
        return _Silent, ()


class _Silent:
    def __call__(self, *args: Any) -> None:
        """In place of a report."""


@contextmanager
def _only_own_records(root: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record connectivity, and hide it from whoever else records."""
    graphs = dynamic_graphs(root).values()
    others = [graph.records for graph in graphs]
    for graph in graphs:
        graph.records = []
    try:
        with record_connectivity(root) as records:
            yield records
    finally:
        for graph, kept in zip(graphs, others):
            graph.records = kept


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    distance = ((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)).item()
    return distance if math.isfinite(distance) else math.inf  # max() would lose NaN
