"""Reading weight files without running anything that is in them.

Supported are safetensors, torch's own files of tensors and plain values, MMEngine's checkpoints
(their tensors only) and Detectron2's ``.pkl`` files of numpy arrays. Everything else is refused.
`gram_backbones.weights.pickles` is how all but the first are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import replacing
from .pickled import STARTS, is_of_the_machine, read_pickled, read_trusted
from .pickles import WeightError, opaque_names


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        source: path or address, for messages.
        tensors: by name, without the wrapper that frameworks put around them.
        record: plain values stored next to the tensors (see `gram_backbones.weights.records`);
            ``classes`` of a detector are its class names, as JSON.

    Examples:
        >>> from gram_backbones import AOGNet, load_weights
        >>> model = AOGNet("aognet_4m")
        >>> file = WeightFile("my weights", model.state_dict(), {"licence": "mine"})
        >>> load_weights(model, file).source
        'my weights'
    """

    source: str
    tensors: Mapping[str, Tensor]
    record: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """A detector's class names; empty if the file has none."""
        return read_classes(self.record)


def read_classes(record: Mapping[str, str]) -> list[str]:
    """The class names in a file's record; empty if it has none.

    Examples:
        >>> read_classes({"classes": '["cat", "dog"]'})
        ['cat', 'dog']
    """
    try:
        names = json.loads(record.get("classes", "[]"))
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def read_weight_file(source: str | Path, *, allow_pickle: bool = False) -> WeightFile:
    """Read a file, or an ``https://`` address with a hash (see :func:`fetch_file`).

    Args:
        source: path or address.
        allow_pickle: let a pickle run arbitrary code. Only for files from a source that you trust.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: the file is damaged, of an unknown kind, without tensors by name, or a pickle
            that needs more than tensors and plain values.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"fc.bias": torch.zeros(10)}}, f"{folder}/weights.pth")
        ...     file = read_weight_file(f"{folder}/weights.pth")
        >>> {name: tuple(value.shape) for name, value in file.tensors.items()}
        {'fc.bias': (10,)}
    """
    path = fetch_file(source)
    try:
        content, record = _read(path, allow_pickle)
        _check_origin(content)
        tensors = _unwrapped(content, path.stat().st_size)
        record = {**_record(content), **record}
    except WeightError as error:
        raise WeightError(f"cannot read {source}: {error}") from error
    except Exception as error:  # parsers of damaged files raise whatever they stumble over
        reason = "it is damaged or not a weight file"
        if isinstance(error, OSError) and is_of_the_machine(error):
            reason = str(error.strerror)
        raise WeightError(f"cannot read {source}: {reason}") from error
    if not tensors:
        raise WeightError(f"{source} holds no tensors by name")
    return WeightFile(str(source), tensors, record)


def _read(path: Path, allow_pickle: bool) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(16)
    if len(start) < 9:
        raise WeightError("it is empty or truncated")
    if start[8:9] == b"{" and not start.startswith(STARTS):
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    if not start.startswith(STARTS):
        raise WeightError("it is neither safetensors, nor a torch file, nor a Detectron2 pickle")
    if allow_pickle:
        return read_trusted(path), {}
    content = read_pickled(path)
    # MMEngine keeps histories and more next to the tensors, which are not needed here.
    if (names := opaque_names(content)) and not _is_mmengine(content):
        raise WeightError(
            f"it is a pickle that needs {', '.join(names[:3])}; allowed are tensors and plain "
            "values (gram-backbones convert --allow-pickle converts a file that you trust)"
        )
    return content, {}


def _is_mmengine(content: Any) -> bool:
    meta = content.get("meta") if isinstance(content, dict) else None
    return isinstance(meta, dict) and "mmengine_version" in meta and "state_dict" in content


def _check_origin(content: Any) -> None:
    """Refuse Detectron2's MSRA ResNets.

    They take BGR images and have the stride in the first 1×1 convolution. Their shapes fit
    torchvision's blocks, but the features would be wrong.
    """
    if not isinstance(content, dict):
        return
    author = content.get("__author__")
    author = author if isinstance(author, str) else ""
    names = content.get("model", content)
    names = [n for n in names if isinstance(n, str)] if isinstance(names, dict) else []
    caffe = any(re.match(r"(conv1_|res\d_\d_branch)", name) for name in names)
    if caffe or author in ("Caffe2", "MSRA", "Detectron2 Model Zoo"):
        raise WeightError(
            f"it is of Caffe's ResNets (author {author or 'not given'!r}), with BGR images and the "
            "stride in the first 1×1 convolution. They fit our networks by shape only; use "
            "torchvision's weights instead"
        )


_DTYPES = {
    getattr(torch, name)
    for name in "float16 bfloat16 float32 float64 uint8 int8 int16 int32 int64 bool".split()
}


def _unwrapped(content: Any, size: int) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        inner = content.get(key) if isinstance(content, dict) else None
        content = inner if isinstance(inner, dict) else content
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str):
            continue
        if isinstance(value, np.ndarray):
            if value.nbytes > size or value.dtype.kind not in "biuf":
                raise WeightError(f"{name} is a {value.dtype} array of {value.nbytes} bytes")
            value = torch.from_numpy(value)
        if isinstance(value, Tensor):
            dense = value.layout == torch.strided and value.device.type == "cpu"
            if not dense or value.dtype not in _DTYPES or value.nbytes > 2 * size:
                raise WeightError(
                    f"{name} is a tensor of {value.dtype}, {value.layout}, {value.device.type}"
                )
            tensors[name] = value.detach()
    return tensors


def _record(content: Any) -> dict[str, str]:
    if not isinstance(content, dict):
        return {}
    meta = content.get("meta")
    plain = dict(meta) if isinstance(meta, dict) else {}
    plain |= {"author": content["__author__"]} if "__author__" in content else {}
    data = plain.get("dataset_meta")  # of MMEngine
    names = data.get("classes") if isinstance(data, dict) else None
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        plain["classes"] = json.dumps(names)
    return {k: str(v) for k, v in plain.items() if isinstance(k, str) and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    small = isinstance(value, int) and abs(value) < 1 << 63
    return isinstance(value, (str, float)) or small


def fetch_file(source: str | Path) -> Path:
    """The path of a source; an ``https://`` address is downloaded once and checked every time.

    The address must contain the file's SHA-256 or at least its first 8 digits: as
    ``…#sha256=<hash>``, or in the file's name as in torch hub, ``resnet50-0676ba61.pth``.
    ``torchvision://resnet50`` stands for torchvision's address. Files are kept in
    ``gram_backbones`` below torch hub's folder.

    Raises:
        FileNotFoundError: there is no such file, or it could not be downloaded.
        WeightError: the address has no hash or another scheme, or the file has another hash.
    """
    if str(source).startswith("torchvision://"):
        source = _torchvision_address(str(source).removeprefix("torchvision://"))
    if "://" not in str(source):
        path = os.path.expanduser(source)
        if not os.path.isfile(path):  # also False if access is denied
            raise FileNotFoundError(f"there is no weight file {path}")
        return Path(path)
    wanted, path = _hash_of(str(source)), cached_file(str(source))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(str(source).partition("#")[0], path, wanted)
    if not file_hash(path).startswith(wanted):
        raise WeightError(
            f"{path} was changed: its SHA-256 does not begin with {wanted}. Delete the file"
        )
    return path


def cache_folder() -> Path:
    """Where downloaded files are kept: ``gram_backbones`` below torch hub's folder."""
    return Path(torch.hub.get_dir()) / "gram_backbones"


def cached_file(address: str) -> Path:
    """Where the file of an ``https://`` address is kept once it is downloaded.

    Raises:
        WeightError: the address has no hash or another scheme.
    """
    return cache_folder() / f"{_hash_of(address)[:16]}-{Path(urlsplit(address).path).name}"


def _hash_of(address: str) -> str:
    """The SHA-256, or its first digits, that an address states."""
    parts = urlsplit(address)
    if parts.scheme != "https":
        raise WeightError(f"cannot read {address}: allowed are paths and https:// addresses")
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", parts.path)
    given = re.fullmatch(r"sha256=([0-9a-f]{8,64})", parts.fragment)
    if stated := given or named:
        return stated[1]
    raise WeightError(
        f"cannot read {address}: it has no hash to check. Append #sha256=<the file's SHA-256>"
    )


def _download(address: str, path: Path, wanted: str) -> None:
    try:
        torch.hub.download_url_to_file(address, str(path), hash_prefix=wanted, progress=False)
    except RuntimeError as error:  # torch hub found another hash and removed the file
        raise WeightError(f"{address} does not have the SHA-256 {wanted}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"cannot download {address}: {error}") from error


def _torchvision_address(name: str) -> str:
    """The address of ``<model>.<weights>``, or of ``<model>``'s first weights, as in MMEngine."""
    model, _, weights = name.partition(".")
    try:
        known = torchvision.models.get_model_weights(model)
    except ValueError as error:
        raise WeightError(f"cannot read torchvision://{name}: {error}") from error
    for member in known:
        if member.name.lower() == (weights.lower() or "imagenet1k_v1"):
            return member.url
    raise WeightError(
        f"cannot read torchvision://{name}: {weights!r} is none of {[m.name for m in known]}"
    )


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_weight_file(
    path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, str], key: str
) -> None:
    """Write tensors with their record, atomically.

    Args:
        path: ends with ``.safetensors``, with the record as metadata; ``.pth`` or ``.pt``, a dict
            with the tensors under ``key`` and the record under ``meta``; or ``.pkl``, numpy arrays
            as Detectron2 publishes them.
        tensors: by name.
        record: plain values.
        key: key of the tensors in a ``.pth`` file: ``model`` for Detectron2, ``state_dict`` for
            MMEngine.

    Raises:
        WeightError: the path has another extension.
        OSError: the path cannot be written.
    """
    with replacing(path) as part:
        _write(part, Path(path).suffix, tensors, record, key)


def _write(
    part: Path, suffix: str, tensors: Mapping[str, Tensor], record: Mapping[str, str], key: str
) -> None:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if suffix == ".safetensors":
        # safetensors refuses tensors that share memory.
        save_file({k: v.clone() for k, v in tensors.items()}, part, metadata=dict(record))
    elif suffix in (".pth", ".pt"):
        torch.save({key: tensors, "meta": dict(record)}, part)
    elif suffix == ".pkl":
        # NumPy has no bfloat16.
        half = torch.bfloat16
        tensors = {n: v.float() if v.dtype == half else v for n, v in tensors.items()}
        arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
        content = {"model": arrays, "__author__": "gram_backbones", "meta": dict(record)}
        part.write_bytes(pickle.dumps(content, protocol=4))
    else:
        raise WeightError(
            f"cannot write {suffix or 'a file without an extension'}; allowed are .safetensors, "
            ".pth, .pt and .pkl"
        )
