"""Published weights by name: finding, downloading and keeping their files.

torchvision's files have an address with a hash (`.files`). The files of AOGNet's authors are on
Google Drive, in archives and without a hash. They are downloaded once by gdown, after their licence
was accepted, and kept as safetensors whose name ends with the SHA-256 of the file.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ..registry import find_variant
from ..staged import Variant
from .files import (
    WeightError,
    WeightFile,
    cache_folder,
    cached_file,
    fetch_file,
    file_hash,
    read_weight_file,
    write_weight_file,
)
from .fit import fit
from .names import meta_tensors
from .records import (
    WEIGHTS,
    WeightRecord,
    find_record,
    known_weights,
    list_weights,
    similar_weights,
)

ACCEPT = "GRAM_BACKBONES_ACCEPT_LICENSE"
_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".pkl", ".safetensors")

logger = logging.getLogger(__name__)


def read_weights(
    source: str | Path, variant: Variant | None = None, *, accept_license: str | None = None
) -> WeightFile:
    """Read published weights by name or tag, a file, or an address.

    Args:
        source: a name of :func:`list_weights`, a tag of the variant's, or what
            :func:`gram_backbones.weights.read_weight_file` takes.
        variant: row of the network that is to be filled; tags are looked up for it.
        accept_license: see :func:`fetch_weights`.

    Raises:
        FileNotFoundError, WeightError: see :func:`fetch_weights`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"fc.bias": torch.zeros(10)}, f"{folder}/weights.pth")
        ...     file = read_weights(f"{folder}/weights.pth")
        >>> list(file.tensors)
        ['fc.bias']
    """
    record = find_record(source, variant)
    file = read_weight_file(fetch_weights(source, variant, accept_license=accept_license))
    if record is None:
        return replace(file, source=str(source))
    return replace(file, source=record.name, record={**record.describe(), **file.record})


def fetch_weights(
    source: str | Path, variant: Variant | None = None, *, accept_license: str | None = None
) -> Path:
    """The path of a source, which is downloaded if it is not here yet.

    Args:
        source: see :func:`read_weights`.
        variant: row of the network that is to be filled.
        accept_license: name of the licence that the user accepts, for files that ask for it before
            they are downloaded. Default: ``GRAM_BACKBONES_ACCEPT_LICENSE`` in the environment.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        WeightError: the model has no such weights; the licence was not accepted; gdown is not
            installed; or the file has another hash, is not one weight file or does not fit.
    """
    record = find_record(source, variant)
    if record is None:
        return _fetch_other(source, variant)
    return _fetch_kept(record, accept_license) if record.restricted else fetch_file(record.url)


def _fetch_other(source: str | Path, variant: Variant | None) -> Path:
    try:
        return fetch_file(source)
    except FileNotFoundError as error:
        if os.sep in str(source):
            raise
        message = f"{error}{similar_weights(source)}"
        if variant is not None and "." not in str(source):
            message += f"; {known_weights(variant)}"
        raise FileNotFoundError(message) from error


def kept_file(record: WeightRecord) -> Path | None:
    """The path of a record's file on this machine; None if it has not been downloaded."""
    if not record.restricted:
        path = cached_file(record.url)
        return path if path.is_file() else None
    return next(cache_folder().glob(f"{record.name}-{'[0-9a-f]' * 64}.safetensors"), None)


def _fetch_kept(record: WeightRecord, accept_license: str | None) -> Path:
    path = kept_file(record)
    if path is None:
        _require_acceptance(record, accept_license)
        path = _download(record)
    if file_hash(path) != path.stem[-64:]:
        raise WeightError(f"{path} was changed: its name has another SHA-256. Delete the file")
    return path


def _require_acceptance(record: WeightRecord, given: str | None) -> None:
    accepted = os.environ.get(ACCEPT) if given is None else given
    if accepted == record.licence:
        return
    said = "" if accepted is None else f", not {accepted!r}"
    raise WeightError(
        f"{record.name} is by {record.origin} and its licence is {record.licence!r}; to accept it, "
        f"pass accept_license={record.licence!r}, --accept-license {record.licence!r} on a command "
        f"line, or set {ACCEPT}={record.licence!r} in the environment{said}"
    )


def _download(record: WeightRecord) -> Path:
    try:
        import gdown
        from filelock import FileLock
    except ImportError as error:
        raise WeightError(
            f"downloading {record.name} needs gdown, which does not import here ({error}): "
            "pip install 'gram-backbones[gdown]'"
        ) from error
    folder = cache_folder() / "downloads" / record.name
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "archive"
    with FileLock(folder / "lock"):  # of several processes, one downloads
        if path := kept_file(record):
            return path
        if not archive.is_file():
            logger.info("downloading %s from %s", record.name, record.url)
            _run_gdown(gdown.download, record, archive)
        path = _keep(record, archive)
        archive.unlink()
    logger.info("kept %s in %s", record.name, path)
    return path


def _run_gdown(download: Callable[..., Any], record: WeightRecord, archive: Path) -> None:
    """Download a file; what an interrupted download left is continued."""
    try:
        download(record.url, str(archive), quiet=True, use_cookies=False, resume=True)
    except Exception as error:  # gdown's own, of requests, of the file system
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"cannot download {record.name} from {record.url}: {reason}. The next try goes on "
            "where this one stopped"
        ) from error
    if not archive.is_file():  # older versions of gdown return None
        raise FileNotFoundError(f"cannot download {record.name} from {record.url}")


def _keep(record: WeightRecord, archive: Path) -> Path:
    """Check a downloaded file, and write its tensors with their record to the cache's folder."""
    digest = file_hash(archive)
    if record.sha256 and not digest.startswith(record.sha256):
        archive.unlink()
        raise WeightError(
            f"{record.url} does not have the SHA-256 {record.sha256} of {record.name}, but {digest}"
        )
    row = find_variant(record.model)
    with TemporaryDirectory(dir=cache_folder()) as folder:
        try:
            file = read_weight_file(_unpack(archive, Path(folder)))
            values = fit(meta_tensors(row), row, replace(file, source=record.name)).values
        except WeightError as error:
            raise WeightError(
                f"{record.name} was downloaded and refused: {error}. To download it again, delete "
                f"{archive}"
            ) from error
        written = Path(folder, "weights.safetensors")
        said = {**record.describe(), "source_sha256": digest}
        write_weight_file(written, values, said, "state_dict")
        path = cache_folder() / f"{record.name}-{file_hash(written)}.safetensors"
        written.replace(path)
    return path


def _unpack(archive: Path, folder: Path) -> Path:
    """The one weight file in a zip or tar archive, or the file itself if it is none.

    Raises:
        WeightError: the archive has none or several, or one that claims an impossible size.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as found:
            if any(name.endswith("data.pkl") for name in found.namelist()):
                return archive  # a torch file
            infos = [info for info in found.infolist() if not info.is_dir()]
            files = {info.filename: (info.file_size, info) for info in infos}
            return _extract(files, lambda info: found.open(info), archive, folder)
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as found:
            members = [member for member in found.getmembers() if member.isfile()]
            files = {member.name: (member.size, member) for member in members}
            return _extract(files, found.extractfile, archive, folder)
    return archive


def _extract(
    files: dict[str, tuple[int, Any]],
    open_member: Callable[[Any], IO[bytes] | None],
    archive: Path,
    folder: Path,
) -> Path:
    names = [
        name
        for name in files
        if name.endswith(_SUFFIXES)
        and not Path(name).name.startswith(".")
        and "__MACOSX" not in name
    ]
    if len(names) != 1:
        raise WeightError(f"the archive must have one weight file, but has {names or list(files)}")
    size, member = files[names[0]]
    if size > 10 * archive.stat().st_size:
        raise WeightError(f"{names[0]} claims {size} bytes, which no weights compress from so few")
    path = folder / "extracted"
    source = open_member(member)
    assert source is not None  # a regular file
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path


def weight_table() -> list[tuple[str, ...]]:
    """Rows of all published weights, the first with the headings, see :func:`list_weights`.

    Examples:
        >>> rows = weight_table()
        >>> rows[0]
        ('model', 'tag', 'top-1', 'licence', 'size', 'from', 'here')
        >>> next(row[:3] for row in rows if row[0] == "dgnet_r50")
        ('dgnet_r50', 'tv2_in1k', '80.86')
    """
    rows: list[tuple[str, ...]] = [("model", "tag", "top-1", "licence", "size", "from", "here")]
    for name in list_weights():
        record = WEIGHTS[name]
        path = kept_file(record)
        size = path.stat().st_size / 2**20 if path else record.size
        rows.append(
            (
                record.model,
                record.tag,
                "-" if record.top1 is None else f"{record.top1:.2f}",
                record.licence.partition(";")[0],
                f"{size:.0f} MB",
                record.origin,
                str(path) if path else "no",
            )
        )
    return rows
