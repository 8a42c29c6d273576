"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends without an error.

    ::

        with replacing("last.pth") as part:
            torch.save(content, part)

    Raises:
        OSError: the folder cannot be written to. ``path`` is left as it was.
    """
    path = Path(path)
    # With the suffix, by which libraries choose the format.
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        flush(part)  # before the name, which a power cut could keep alone
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())
