"""One process, or several started by torchrun, with NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import random_seed
from timm.utils.distributed import is_distributed_env, world_info_from_env
from torch import Tensor

from ..distributed import end_processes
from ..lost_processes import TIMEOUT, end_with_launcher


@dataclass(frozen=True)
class Processes:
    """The rank of this process, the number of processes and the device.

    Attributes:
        rank: rank of this process; rank 0 writes files and prints.
        count: number of processes.
        device: device of this process.
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

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all processes, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def start_processes(timeout: int = TIMEOUT) -> Iterator[Processes]:
    """Join the processes that torchrun started, if any, and end them together.

    Objects that hold a DDP model should be freed by the end of the block (see `end_processes`).

    Args:
        timeout: seconds that a process waits for another one.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_distributed_env():
        yield Processes(0, 1, torch.device(kind))
        return
    end_with_launcher()
    local, rank, count = world_info_from_env()
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=timeout),
    )
    try:
        yield Processes(rank, count, device)
    except BaseException:
        dist.destroy_process_group()  # alone: others may not have failed
        raise
    end_processes()


@contextmanager
def primary_first(processes: Processes) -> Iterator[None]:
    """Rank 0 runs the block before all others."""
    if processes.rank:
        dist.barrier()
    try:
        yield
    finally:
        if processes.count > 1 and not processes.rank:
            dist.barrier()


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch from a sequence of non-negative integers."""
    # Not seeding.seed_everything, which draws other seeds: the figures in docs/evidence.md were
    # measured with these.
    random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
