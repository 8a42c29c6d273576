"""A line in the log at the start of an evaluation: does DG-Net evaluate as it was trained?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .connectivity import summarise
from .graph import dynamic_graphs, record_connectivity, training_gate
from .network import DGNet, DGStage

logger = logging.getLogger(__name__)

# Relative distance of the features above which the line is a warning.
TOLERANCE = 0.05


def report_gates(model: nn.Module, log: Callable[[int, str], Any] = logger.log) -> None:
    """Log once, with the next batch that each DG-Net in ``model`` evaluates, how its edges stand.

    The line gives the share of closed edges and blocks, and how far the features are from those
    with the edges weighed as in training: the norm of the difference over their norm, the largest
    of all features. Above 5 % it is a warning. Nothing happens to models without dynamic edges.
    The batch is computed three times, later ones once.

    Args:
        model: in evaluation mode, for instance a detector, a network or a rewired network.
        log: takes a level of :mod:`logging` and the line.

    Example:
        >>> from gram_backbones import DGNet
        >>> model = DGNet("dgnet_r18").eval()
        >>> report_gates(model, lambda level, line: print(line.split(" of ")[0]))
        >>> features = model(torch.randn(1, 3, 64, 64))
        DG-Net: 0.0 %
    """
    roots = [m for m in model.modules() if isinstance(m, (DGNet, DGStage))] or [model]
    roots = [r for r in roots if any(g.edges == "dynamic" for g in dynamic_graphs(r).values())]
    if roots:
        _Report(roots, log)


class _Report:
    """Hooks on the networks; the last one that has run writes the line."""

    def __init__(self, roots: list[nn.Module], log: Callable[[int, str], Any]):
        self.log = log
        self.waiting = {id(root) for root in roots}
        self.records: dict[str, list[Tensor]] = {}
        self.distance = 0.0
        for root in roots:
            for earlier in getattr(root, "_gate_report", ()):  # of an evaluation that read nothing
                earlier.remove()
            handle = root.register_forward_hook(self._compare, with_kwargs=True)
            root._gate_report = (handle,)

    @torch.no_grad()
    def _compare(self, root: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if root.training:
            return
        for handle in root.__dict__.pop("_gate_report"):
            handle.remove()
        with record_connectivity(root) as records:
            root(*args, **kwargs)
        with training_gate(root):
            wanted = root(*args, **kwargs)
        self.records |= {f"{id(root)}.{name}": found for name, found in records.items()}
        pairs = zip(_tensors(output), _tensors(wanted), strict=True)
        distances = [_distance(a, b) for a, b in pairs if a.numel()]
        self.distance = max([self.distance, *distances])
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
        if self.distance <= TOLERANCE:
            self.log(logging.INFO, line)
            return
        self.log(
            logging.WARNING,
            f"{line}. Above 5 % the network does not evaluate as it was trained: evaluate with "
            "gate='soft' what was trained with gate='paper', or train with the default gate.",
        )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)).item()
