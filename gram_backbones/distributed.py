"""Runs in several processes, whichever framework started them: what they share, and their end."""

from __future__ import annotations

import gc
from typing import Any

import torch.distributed as dist

if dist.is_available():
    # DDP imports this module. Its functions take the process group that exists at that moment as a
    # default argument, and so keep it alive; imported here, before there is a group, they do not.
    import torch.distributed.nn  # noqa: F401


class ProcessesDifferError(RuntimeError):
    """Processes of one run do not go on from the same state."""


def require_same(what: str, value: Any) -> None:
    """Make sure that all processes of the group have the same value; all of them call this.

    Raises:
        ProcessesDifferError: they have not; the message lists them by rank.

    Examples:
        >>> require_same("the iteration", 7)
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise ProcessesDifferError(f"{what} differs between processes, by rank: {values}")


def end_processes() -> None:
    """Leave the process group together and end its threads; the frameworks' engines do not.

    A process that leaves early closes connections on which another may still be sending. A gloo
    thread that frees its last tensor while the interpreter shuts down aborts the process with
    "terminate called without an active exception". The threads end when nothing refers to the group
    any more, so call this where the DDP model is no longer referenced. Nothing happens in a run of
    one process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # models are in reference cycles, and DDP refers to the group
        dist.barrier()
        dist.destroy_process_group()
