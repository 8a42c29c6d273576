"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

_HOST = f"{crc32(platform.node().encode()):08x}"  # on a shared disk, others have the same numbers


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends without an error.

    Several processes may write the same file at once; the last one's stays. What a killed process
    left unfinished in the folder is deleted when a later one first writes there.

    ::

        with replacing("last.pth") as part:
            torch.save(content, part)

    Raises:
        OSError: the folder cannot be written to. ``path`` is left as it was.
    """
    path = Path(path)
    _delete_leftovers(path.parent)
    # With the suffix, by which libraries choose the format.
    part = path.with_name(f".{path.stem}.{_HOST}-{os.getpid()}.part{path.suffix}")
    try:
        yield part
        flush(part)  # before the name, which a power cut could keep alone
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@functools.cache
def _delete_leftovers(folder: Path) -> None:
    if os.name != "posix":  # elsewhere os.kill ends the process
        return
    for part in folder.glob(f".*.{_HOST}-*.part*"):
        pid = re.search(rf"\.{_HOST}-(\d+)\.part", part.name)
        with suppress(OSError):  # another process was faster, or the writer is another user's
            if pid and not _is_alive(int(pid[1])):
                part.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def is_file(path: str | Path) -> bool:
    """Whether there is a file; raises OSError where that is not known, as on a disk that fails."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    except ValueError:  # a zero byte in the name
        return False
