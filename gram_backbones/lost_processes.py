"""Other ranks and loader workers that died or hang: an error names them, and nothing is left."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import DataLoader

TIMEOUT = 1800  # seconds that a rank waits for another one, which may evaluate alone
LOADER_TIMEOUT = 900  # less, so that the rank whose worker hangs ends first and says so

# How gloo, NCCL and torch's store say that another process is gone or does not answer.
_LOST = re.compile(
    "time[d ]? ?out|closed|reset by peer|broken pipe|got 0 bytes|remote process exited|"
    "connection was aborted|not connected",
    re.IGNORECASE,
)
# States of a process, as Linux abbreviates them.
_STATES = {"D": "waits for a disk", "R": "running", "S": "asleep", "T": "stopped", "Z": "dead"}


class LostProcessError(RuntimeError):
    """Another rank or a loader worker died, or has not answered within the timeout."""


@contextmanager
def naming_lost_processes(seconds: int = LOADER_TIMEOUT) -> Iterator[None]:
    """A context in which torch's errors about lost processes become sentences.

    Loader workers of this process are killed where one of them hangs: the interpreter would wait
    for it at its end. A worker that is stopped is killed in any case, as torch may wait for it
    without a limit, within a message of its.

    Args:
        seconds: how long a loader worker may be stopped.

    Raises:
        LostProcessError: a rank or a worker is lost.

    Examples:
        >>> with naming_lost_processes():
        ...     raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        Traceback (most recent call last):
        gram_backbones.lost_processes.LostProcessError: DataLoader worker (pid 7) is killed by ...
    """
    watch = _StoppedWorkers(seconds)
    try:
        with watch:
            yield
    except LostProcessError:
        raise
    except (ConnectionError, EOFError) as error:  # torch's own may have come amid a log's line
        if watch.said:
            raise LostProcessError(watch.said) from error
        raise
    except RuntimeError as error:
        said = " ".join(str(error).split()).rstrip(".")
        if said.startswith("DataLoader "):
            raise LostProcessError(watch.said or _about_worker(said)) from error
        of_group = isinstance(error, getattr(dist, "DistError", ())) or "gloo/" in said
        if of_group and _LOST.search(said):  # others are mistakes, such as a port in use
            raise LostProcessError(_about_rank(said)) from error
        raise


class _StoppedWorkers:
    """A context in which a thread kills loader workers that have been stopped for long."""

    def __init__(self, seconds: int):
        self.said = ""
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind and issubclass(kind, (ConnectionError, EOFError)):
                # A worker died while it handed over a batch. Torch's handler of its death raises
                # the error that names it, a moment later.
                time.sleep(1)
        finally:
            self._over.set()
            self._thread.join()

    def _watch(self) -> None:
        since: dict[int | None, float] = {}
        while not self._over.wait(1):
            now = time.monotonic()
            stopped = [worker for worker in _workers() if _state(worker.pid) == "stopped"]
            since = {worker.pid: since.get(worker.pid, now) for worker in stopped}
            for worker in stopped:
                if now - since[worker.pid] >= self._seconds:
                    self.said = (
                        f"DataLoader worker (pid {worker.pid}) was stopped, and ended after "
                        f"{self._seconds} seconds"
                    )
                    worker.kill()


def _about_worker(said: str) -> str:
    if "timed out" in said:
        said += f"; its workers: {_end_workers()}"
    elif said.endswith("signal: Killed"):
        said += ", which often means that the memory was full"
    return said


def _about_rank(said: str) -> str:
    place, _, rest = said.partition("] ")  # of a line of C++
    said = rest.partition(". ")[0] if place.startswith("[") else said
    ranks = "this rank"
    if dist.is_initialized():
        ranks = f"rank {dist.get_rank()} of {dist.get_world_size()}"
    return f"{ranks} has lost another one, which died or did not answer in time: {said}"


def _workers() -> list[BaseProcess]:
    # Not active_children(), which collects the dead: torch's handler must find them.
    children = multiprocessing.process._children.copy()  # type: ignore[attr-defined]
    return [child for child in children if child.daemon]


def _end_workers() -> str:
    """Kill the loaders' workers, and say what each was doing."""
    workers = _workers()
    states = ", ".join(f"process {worker.pid} ({_state(worker.pid)})" for worker in workers)
    with _deaf_to_children():
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
    return states


@contextmanager
def _deaf_to_children() -> Iterator[None]:
    """A context without torch's handler of SIGCHLD, which raises wherever the program is."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except (AttributeError, ValueError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        if before is not None:  # a handler of C code
            signal.signal(signal.SIGCHLD, before)


def _state(pid: int | None) -> str:
    with suppress(OSError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return _STATES.get(letter, letter)
    return "state unknown"


def guard_loader(loader: DataLoader, seconds: int = LOADER_TIMEOUT) -> DataLoader:
    """Limit how long a loader waits for its workers, and let them end with this process.

    Args:
        loader: its ``timeout`` is set, unless it has no workers or one of its own.
        seconds: longest wait for a batch.

    Returns:
        The loader itself.

    Examples:
        >>> guard_loader(DataLoader([1, 2], num_workers=2), 60).timeout
        60
    """
    if loader.num_workers:
        # With a timeout torch learns of a worker's death by a signal, which Windows lacks.
        if hasattr(signal, "SIGCHLD") and not loader.timeout:
            loader.timeout = seconds
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
    return loader


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    if parent := multiprocessing.parent_process():
        if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in all threads
            threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if start:
        start(number)


def _end_with(parent: BaseProcess) -> None:
    # Torch's workers look for their parent too, but stay for ever if it died before they began,
    # which takes seconds where they are spawned, or while a batch fills the pipe to it. Joining
    # alone may fail too: a forked worker, even if stopped, holds open what tells those before it.
    is_child = os.getppid() == parent.pid  # not of a fork server
    while parent.is_alive() and (not is_child or os.getppid() == parent.pid):
        parent.join(1)
    os._exit(1)


def _obey(parent: int | None) -> None:
    # torchrun and schedulers send SIGTERM to workers too, but the rank has to finish its iteration.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def end_with_launcher() -> None:
    """Let Linux send SIGTERM to this process when the one that started it is killed.

    Nothing happens in a process that neither torchrun nor Detectron2's ``launch`` started.
    """
    started = "TORCHELASTIC_RUN_ID" in os.environ or multiprocessing.parent_process()
    if started and sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
        parent = multiprocessing.parent_process()
        if parent and not parent.is_alive():  # it was killed before
            os.kill(os.getpid(), signal.SIGTERM)
