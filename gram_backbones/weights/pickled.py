"""Torch's files, in a zip archive or of before torch 1.6, and pickles of numpy arrays.

A file's tensors can claim no more memory than the file has bytes.
"""

from __future__ import annotations

import errno
import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ..atomic import is_file
from .pickles import DamagedError, Finisher, WeightError, load_pickle, opaque_names

_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\x0a"  # the magic number that begins torch's files before 1.6
_PICKLE = b"\x80"
STARTS = (_ZIP, _PICKLE)


def read_pickled(path: Path, finishers: Mapping[str, Finisher] | None = None) -> Any:
    """The content of a file; see :func:`gram_backbones.weights.pickles.load_pickle`.

    Raises:
        WeightError: it is of another kind, or claims more memory than it has bytes.
        Exception: whatever a damaged file causes.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_TORCH))
        if start.startswith(_ZIP):
            return _read_archive(file, path.stat().st_size, finishers)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = cast(IO[bytes], mapped)
            if start == _LEGACY_TORCH:
                return _read_legacy(data, len(mapped), finishers)
            return load_pickle(data, finishers=finishers)


def check_sums(path: str | Path) -> None:
    """Compare the checksums in a file of ``torch.save``; ``torch.load`` does not.

    Raises:
        DamagedError: it is not a whole zip archive, or bytes have changed.

    Examples:
        >>> check_sums(__file__)
        Traceback (most recent call last):
        gram_backbones.weights.pickles.DamagedError: it is not a whole zip archive
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except Exception as error:  # zipfile raises many kinds
        _raise_if_of_the_machine(error)
        raise DamagedError("it is not a whole zip archive") from error
    if wrong:
        raise DamagedError(f"the checksum of {wrong} is wrong")


def _raise_if_of_the_machine(error: Exception) -> None:
    """Raise what says nothing about the file: no permission, a disk that fails, full memory."""
    if isinstance(error, OSError) and is_of_the_machine(error):
        raise error
    if isinstance(error, MemoryError):
        raise error
    if "DefaultCPUAllocator" in str(error):  # a RuntimeError of torch
        raise MemoryError(str(error)) from error


def is_of_the_machine(error: OSError) -> bool:
    """Whether an error while a file is read says nothing about the file."""
    # Seeking to a place before the file's beginning, as a damaged archive asks, is "invalid".
    return error.errno not in (None, errno.EINVAL)


def read_trusted(path: Path) -> Any:
    """The content of a file, which may run arbitrary code."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_TORCH))
        if start.startswith(_ZIP):
            check_sums(path)
        if start == _LEGACY_TORCH or start.startswith(_ZIP):
            return torch.load(path, map_location="cpu", weights_only=False)
        file.seek(0)
        return pickle.load(file, encoding="latin1")


def read_checkpoint(
    path: str | Path,
    *,
    trust: bool = False,
    finishers: Mapping[str, Finisher] | None = None,
    remedy: str = "",
) -> dict[str, Any]:
    """All of a run's checkpoint, to go on from it: tensors on the CPU, arrays and plain values.

    Args:
        path: torch's file.
        trust: let the file run arbitrary code.
        finishers: see :func:`gram_backbones.weights.pickles.load_pickle`.
        remedy: what to do about a file that needs more, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is damaged; a zip archive has a checksum of each tensor.
        OSError, MemoryError: it cannot be read here, and may be whole.
        WeightError: it holds something else, or a class that is not installed here.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"iteration": 7, "w": torch.ones(2)}, f"{folder}/last.pth")
        ...     read_checkpoint(f"{folder}/last.pth")
        {'iteration': 7, 'w': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if not is_file(path):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = read_trusted(path) if trust else read_pickled(path, finishers)
    except WeightError as error:
        raise DamagedError(f"cannot read {path}: {error}") from error
    except Exception as error:  # parsers of damaged files raise whatever they stumble over
        _raise_if_of_the_machine(error)
        if trust and isinstance(error, (AttributeError, ImportError)):
            raise WeightError(f"cannot read {path}: {error}") from error
        raise DamagedError(f"cannot read {path}: it is damaged or not a checkpoint") from error
    if names := opaque_names(content):
        raise WeightError(
            f"cannot read {path}: it needs {', '.join(names[:3])}; allowed are tensors, arrays and "
            f"plain values{remedy and f' ({remedy})'}"
        )
    if not isinstance(content, dict):
        raise WeightError(f"cannot read {path}: it holds a {type(content).__name__}, not a dict")
    return content


class _Storages:
    """The memory of a file's tensors."""

    def __init__(self, size: int):
        self._left = size
        self.buffers: dict[str, Tensor] = {}  # bytes, by key
        self.item_sizes: dict[str, int] = {}

    def claim(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """A storage's elements, of shape ``(numel,)``, whose values are read later."""
        size = numel * dtype.itemsize
        if key not in self.buffers:
            self._left -= size
            if self._left < 0:
                raise WeightError(f"it claims {size} bytes for tensor {key}, more than it has")
            self.buffers[key] = torch.empty(size, dtype=torch.uint8)
            self.item_sizes[key] = dtype.itemsize
        if len(self.buffers[key]) != size:
            raise WeightError(f"it claims two sizes for tensor {key}")
        return self.buffers[key].view(dtype)

    def fill(self, key: str, source: IO[bytes]) -> None:
        """Read a storage's bytes."""
        buffer = memoryview(cast(Any, self.buffers[key].numpy()))
        done = 0
        while done < len(buffer):
            chunk = source.read(min(len(buffer) - done, 1 << 20))
            if not chunk:
                raise WeightError(f"it ends in tensor {key}")
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)


def _read_archive(file: IO[bytes], size: int, finishers: Mapping[str, Finisher] | None) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # torch does not compress; a compressed entry would be read as whatever size it claims.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise WeightError("it is a compressed archive, which torch does not write")
        if any(not e.file_size == e.compress_size <= size for e in entries.values()):
            raise WeightError("it is an archive with an entry that is larger than the file")
        names = [name for name in entries if name.endswith("data.pkl")]
        if len(names) != 1:
            raise WeightError(f"it is an archive with {len(names)} data.pkl; torch writes one")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in entries:
            raise WeightError("it is a TorchScript program; save its state_dict instead")
        order = entries.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise WeightError("its numbers are big-endian; allowed is little-endian")
        storages = _Storages(size)
        stream = io.BytesIO(archive.read(names[0]))
        content = load_pickle(stream, storages.claim, finishers)
        for key, buffer in storages.buffers.items():
            entry = entries[f"{folder}data/{key}"]
            if entry.file_size != len(buffer):
                raise WeightError(f"tensor {key} has {entry.file_size} bytes, not {len(buffer)}")
            with archive.open(entry) as source:
                storages.fill(key, source)
        return content


def _read_legacy(data: IO[bytes], size: int, finishers: Mapping[str, Finisher] | None) -> Any:
    """Five pickles, then the storages in the order of the last one."""
    _magic, _version, system = (load_pickle(data) for _ in range(3))
    if not system["little_endian"]:
        raise WeightError("its numbers are big-endian; allowed is little-endian")
    storages = _Storages(size)
    content = load_pickle(data, storages.claim, finishers)
    for key in load_pickle(data):
        (numel,) = struct.unpack("<q", data.read(8))
        if numel * storages.item_sizes.pop(key) != len(storages.buffers[key]):
            raise WeightError(f"tensor {key} has {numel} elements, which its record contradicts")
        storages.fill(key, data)
    if storages.item_sizes:
        raise WeightError(f"it lacks the tensors {', '.join(sorted(storages.item_sizes)[:3])}")
    return content
