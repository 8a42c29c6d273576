"""The checkpoints in a run's folder: written whole, the last two known, and read back if whole.

``last_checkpoint`` names the last one, as in Detectron2 and MMEngine, ``previous_checkpoint`` the
one before it.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..atomic import is_file, replacing
from .pickles import DamagedError

_T = TypeVar("_T")
_LAST, _PREVIOUS = "last_checkpoint", "previous_checkpoint"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk that takes no more


class SavingError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


@contextmanager
def saving(path: str | Path, last: str | Path | None) -> Iterator[Path]:
    """A path to write a checkpoint to, which takes the place of ``path`` once it is whole.

    Args:
        path: the checkpoint.
        last: the one before it, for the message.

    Raises:
        SavingError: the disk is full, or the folder is gone or cannot be written to.

    Examples:
        >>> with saving("no/such/folder/model.pth", None) as part:
        ...     part.write_text("weights")
        Traceback (most recent call last):
        gram_backbones.weights.checkpoints.SavingError: cannot write the checkpoint \
no/such/folder/model.pth: no/such/folder does not exist; there is none before it
    """
    try:
        with replacing(path) as part:
            part.touch()  # fails without a folder, which some writers would make
            yield part
    except OSError as error:
        reason, is_there = _reason(error, Path(path).parent), last and Path(last).is_file()
        kept = f"the last good one is {last}" if is_there else "there is none before it"
        raise SavingError(f"cannot write the checkpoint {path}: {reason}; {kept}") from error


@contextmanager
def naming_last_checkpoint(folder: str | Path, last: Callable[[], Path | None]) -> Iterator[None]:
    """A context in which a disk that takes no more is named with the last good checkpoint.

    Args:
        folder: of the run.
        last: finds the checkpoint.

    Raises:
        SavingError: the disk is full or read-only, or the folder is gone. Other errors stay.

    Examples:
        >>> with naming_last_checkpoint("runs/1", lambda: Path("runs/1/last.pth")):
        ...     open("runs/1/metrics.json", "a")
        Traceback (most recent call last):
        gram_backbones.weights.checkpoints.SavingError: cannot write to runs/1/metrics.json: \
runs/1 does not exist; the last good checkpoint is runs/1/last.pth
    """
    try:
        yield
    except SavingError:
        raise
    except OSError as error:
        if error.errno not in _FULL and Path(folder).is_dir():
            raise
        file, reason = last(), _reason(error, Path(folder))
        kept = f"the last good checkpoint is {file}" if file else "there is no checkpoint"
        where = error.filename or folder
        raise SavingError(f"cannot write to {where}: {reason}; {kept}") from error


def end_run_without_disk(log: logging.Handler) -> None:
    """Let a log raise an error of its disk; logging prints a trace for every line and goes on.

    Examples:
        >>> end_run_without_disk(logging.FileHandler("log.txt", delay=True))
    """
    print_trace = log.handleError

    def handle(record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            raise
        print_trace(record)

    log.handleError = handle  # type: ignore[method-assign]


def _reason(error: OSError, folder: Path) -> str:
    if folder.is_dir():
        return str(error.strerror)
    return f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}"


def save_checkpoint(content: Any, path: str | Path, last: str | Path | None) -> None:
    """Write a dict of tensors and plain values by ``torch.save``, whole or not at all.

    Args:
        content: the dict.
        path, last: see :func:`saving`.

    Raises:
        SavingError: see :func:`saving`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint({"w": torch.ones(2)}, f"{folder}/last.pth", None)
        ...     torch.load(f"{folder}/last.pth")
        {'w': tensor([1., 1.])}
    """
    with saving(path, last) as part:
        write_content(content, part)


def write_content(content: Any, path: str | Path) -> None:
    """``torch.save`` with an error that says what is wrong.

    Args:
        content: a dict of tensors and plain values.
        path: the file.

    Raises:
        OSError: the file cannot be written.

    Examples:
        >>> write_content({}, "no/such/folder/model.pth")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'no/such/folder/model.pth'
    """
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # "unexpected pos 64 vs 0", after what the stream raised
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_first_whole(
    files: Sequence[Path], load: Callable[[Path], _T], warn: Callable[[str], object]
) -> tuple[Path, _T]:
    """Load the first file that is there and not damaged.

    Args:
        files: checkpoints, the newest first; at least one.
        load: raises FileNotFoundError or DamagedError before it changes anything.
        warn: gets a line about each file that was passed over.

    Returns:
        The file and what ``load`` returned.

    Raises:
        FileNotFoundError, DamagedError: of the last file.
    """
    for file, older in zip(files, files[1:]):
        try:
            return file, load(file)
        except (FileNotFoundError, DamagedError) as error:
            warn(f"{error}. Going on from the checkpoint before it, {older}")
    return files[-1], load(files[-1])


class SavedCheckpoints:
    """Notes in a run's folder which checkpoints are its last two, and resumes from them.

    Args:
        folder: of the run.

    Attributes:
        place: folder that the checkpoints are in, at first the run's.
        own: name of the checkpoint that this run saved last, or goes on from; empty if none.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     saved = SavedCheckpoints(folder)
        ...     for name in ("1.pth", "2.pth", "3.pth"):
        ...         _ = Path(folder, name).write_text(name)
        ...         saved.add(name)
        ...     [file.name for file in saved.files()]
        ['3.pth', '2.pth']
    """

    def __init__(self, folder: str | Path):
        self.folder = self.place = Path(folder)
        self.own = ""

    def files(self) -> list[Path]:
        """The last checkpoint and the one before it, as far as they were noted."""
        notes = [self.folder / name for name in (_LAST, _PREVIOUS)]
        names = [note.read_text(errors="replace").strip() for note in notes if is_file(note)]
        return [self._find(name) for name in names if name]

    def _find(self, name: str) -> Path:
        # MMEngine notes a path, which is wrong once the folder was moved.
        beside = self.place / Path(name).name
        return beside if is_file(beside) or beside.name == name else Path(name)

    @property
    def noted(self) -> bool:
        """Whether a last checkpoint was noted."""
        return is_file(self.folder / _LAST)

    @property
    def last(self) -> Path | None:
        """The last checkpoint of this run that is there."""
        if not self.own:
            return None
        files = (self._find(self.own), *self.files())  # the first process may still be writing
        return next((file for file in files if is_file(file)), None)

    def add(self, name: str) -> None:
        """Note a checkpoint that was written, and the one before it."""
        before = self.folder / _PREVIOUS
        with replacing(self.folder / _LAST) as part:
            part.write_text(name)
        if not self.own:  # what is noted there is another run's
            before.unlink(missing_ok=True)
        elif self.own != name:
            with replacing(before) as part:
                part.write_text(self.own)
        self.own = name

    def resume(self, load: Callable[[Path], _T], warn: Callable[[str], object]) -> tuple[Path, _T]:
        """Load the last checkpoint, or the one before it where the last is damaged or missing.

        Arguments, results and errors are those of :func:`load_first_whole`.
        """
        files = self.files()
        if not files:
            raise FileNotFoundError(f"{self.folder / _LAST} names no checkpoint")
        file, found = load_first_whole(files, load, warn)
        self.own = file.name if file.parent == self.folder else str(file)
        return file, found

    def resumed(self, file: str | Path) -> None:
        """Tell that the run goes on from a file; if it is in ``place``, it is kept as the last."""
        file = Path(file)
        if not self.own and file.absolute().parent == self.place.absolute():
            self.own = file.name
