"""SIGTERM, which schedulers send before they stop a job: the run saves its state and ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from typing_extensions import Self


class Terminated(SystemExit):
    """Ends the process with 143, the exit code of SIGTERM."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

    def __str__(self) -> str:
        return "SIGTERM was received"


class Termination:
    """A context in which SIGTERM is noted; outside the main thread nothing is.

    Examples:
        >>> import os
        >>> with Termination() as termination:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     termination.check()
        Traceback (most recent call last):
        gram_backbones.termination.Terminated: SIGTERM was received
    """

    def __init__(self) -> None:
        self._received = False
        self._before: Any = None

    def __enter__(self) -> Self:
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, *_: Any) -> None:
        self._received = True

    def check(self, *, together: bool = False) -> None:
        """Raise if the signal has come.

        Args:
            together: all processes of the group call this at the same point of their work, and all
                raise if one of them has received it.

        Raises:
            Terminated: it has.
        """
        received = self._received
        if together and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            anywhere = torch.tensor(float(received), device=device)
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
            received = bool(anywhere)
        if received:
            raise Terminated


@contextmanager
def forwarding_termination() -> Iterator[None]:
    """A context in which SIGTERM goes on to the processes that multiprocessing started here.

    Examples:
        >>> with forwarding_termination():
        ...     pass
    """

    def forward(*_: Any) -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
