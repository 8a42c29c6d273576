"""The end of a run in several processes, whichever framework started them."""

from __future__ import annotations

import torch.distributed as dist


def end_processes() -> None:
    """Leave the process group together, as torch asks; the frameworks' engines do not.

    A process that goes first closes connections on which another may still be sending. Nothing
    happens in a run of one process.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
