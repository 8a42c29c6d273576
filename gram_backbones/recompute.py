"""Activation checkpointing that keeps the statistics of norms right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .fused import as_now


def recompute(
    module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``module(x)`` without keeping its activations: they are computed again for the backward pass.

    The second pass leaves the module's buffers as the first one set them; BN statistics would
    otherwise be updated twice. Gradients and buffers equal those of a plain call.

    Args:
        module: holds all parameters and buffers that the computation uses.
        x: its input.
        run: what to compute, where that is only a part of the module.
    """
    run = module if run is None else run
    if not torch.is_grad_enabled():
        return run(x)
    return checkpoint(
        run,
        x,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _Again(partial(_second_pass, module, as_now()))),
    )


class _Again(AbstractContextManager):
    """A context that can be entered again, as every backward pass through one graph does."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make = make

    def __enter__(self) -> None:
        self._context = self._make()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._context.__exit__(*error)


@contextmanager
def _second_pass(module: nn.Module, form: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """Buffers stay as they are, and operators are fused as in the first pass."""
    # `.data`: the version counters must not move, autograd may hold these very buffers.
    kept = [(buffer, buffer.data.clone()) for buffer in module.buffers()]
    try:
        with form():
            yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)
