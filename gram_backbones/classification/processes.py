"""One process or several: torchrun's, over NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import random_seed
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor

from ..distributed import end_processes


@dataclass(frozen=True)
class Processes:
    """This process among all of a run's.

    Attributes:
        rank: number of this process, 0 writes files and prints.
        count: how many there are.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.count > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()


@contextmanager
def start_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one; leave them together.

    What holds a model in DDP is best gone at the end of the block (see `end_processes`).
    """
    found = init_distributed_device_so("cuda" if torch.cuda.is_available() else "cpu")
    try:
        yield Processes(found["global_rank"], found["world_size"], torch.device(found["device"]))
    except BaseException:
        if found["distributed"]:
            dist.destroy_process_group()  # alone: others may not have failed
        raise
    end_processes()


@contextmanager
def primary_first(processes: Processes) -> Iterator[None]:
    """The first process runs the block before all others do."""
    if processes.rank:
        dist.barrier()
    try:
        yield
    finally:
        if processes.count > 1 and not processes.rank:
            dist.barrier()


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch from a sequence of non-negative integers."""
    random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
