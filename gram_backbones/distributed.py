"""The end of a run in several processes, whichever framework started them."""

from __future__ import annotations

import gc

import torch.distributed as dist

if dist.is_available():
    # DDP imports this module. Its functions take the process group that exists at that moment as a
    # default argument, and so keep it alive; imported here, before there is a group, they do not.
    import torch.distributed.nn  # noqa: F401


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
