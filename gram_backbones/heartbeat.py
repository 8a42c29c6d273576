"""A line in the log now and then while something long goes on in silence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
