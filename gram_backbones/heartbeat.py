"""A line now and then while something long goes on in silence."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

SECONDS = 20.0


class _LastLine(logging.Handler):
    """Notes when the last line was logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


@contextmanager
def heartbeat(what: str, *loggers: logging.Logger, seconds: float = SECONDS) -> Iterator[None]:
    """Log that the block goes on whenever the loggers have been silent for a while.

    Args:
        what: goes on, for instance ``"evaluation"``.
        loggers: all that are listened to; the first one logs.
        seconds: longest silence.

    Examples:
        >>> with heartbeat("evaluation", logging.getLogger("gram_backbones")):
        ...     pass
    """
    last, over = _LastLine(), threading.Event()
    start = time.monotonic()

    def speak() -> None:
        while not over.wait(seconds / 10):
            if (now := time.monotonic()) - last.time >= seconds:
                with suppress(OSError):  # of a full disk, which the run itself meets and names
                    loggers[0].info("%s goes on, after %d s", what, now - start)
                last.time = now  # also where the logger's level hides the line

    for logger in loggers:
        logger.addHandler(last)
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for logger in loggers:
            logger.removeHandler(last)


def progress(batches: Any, what: str, *, seconds: float = SECONDS) -> Iterator[Any]:
    """Batches, with a bar on a terminal, and otherwise with a line after every long silence.

    Args:
        batches: a loader or a list.
        what: they are of, for instance ``"epoch 3/90"``.
        seconds: longest silence, if batches are shorter.

    Examples:
        >>> list(progress([1, 2], "epoch 3/90"))
        [1, 2]
    """
    if sys.stderr.isatty():
        yield from tqdm(batches, what, leave=False)
        return
    start = last = time.monotonic()
    for done, batch in enumerate(batches):
        if done and (now := time.monotonic()) - last >= seconds:
            last = now
            print(f"{what}: {done} of {len(batches)} batches in {now - start:.0f} s", flush=True)
        yield batch
