"""Activation checkpointing that keeps the statistics of norms right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
        context_fn=lambda: (nullcontext(), _second_pass(module, as_now())),
    )


@contextmanager
def _second_pass(module: nn.Module, form: AbstractContextManager) -> Iterator[None]:
    """Buffers stay as they are, and operators are fused as in the first pass."""
    # `.data`: the version counters must not move, autograd may hold these very buffers.
    kept = [(buffer, buffer.data.clone()) for buffer in module.buffers()]
    try:
        with form:
            yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)
