"""The end of a run in several processes, whichever framework started them."""

from __future__ import annotations

import gc

import torch.distributed as dist

if dist.is_available():
    # Its functions' defaults are the process group there is when it is imported. DDP imports it;
    # imported before the group, it keeps none alive.
    import torch.distributed.nn  # noqa: F401


def end_processes() -> None:
    """Leave the process group together and end its threads; the frameworks' engines do not.

    A process that goes first closes connections on which another may still be sending. A thread of
    gloo that lets go of a last tensor while the interpreter is shutting down aborts the process:
    "terminate called without an active exception". The threads end with the group's last reference,
    so call this where the model in DDP is out of reach. Nothing happens in a run of one process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # models lie in cycles, and DDP refers to the group
        dist.barrier()
        dist.destroy_process_group()
