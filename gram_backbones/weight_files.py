"""Weight files read without running anything that is in them.

Read are safetensors, torch's own files of tensors and plain values, MMEngine's checkpoints (their
tensors only) and Detectron2's ``.pkl`` of numpy arrays. Everything else is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor


class WeightError(ValueError):
    """A weight file that is not read, or does not fit; nothing was changed."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        source: where it is from, for messages.
        tensors: by name, without the wrapper that frameworks put around them.
        record: plain values that stand next to the tensors (see `gram_backbones.zoo`).
    """

    source: str
    tensors: Mapping[str, Tensor]
    record: Mapping[str, str] = field(default_factory=dict)


def read_weight_file(source: str | Path, *, allow_pickle: bool = False) -> WeightFile:
    """Read a file, or an ``https://`` address with a hash (see :func:`local_file`).

    Args:
        source: path or address.
        allow_pickle: run whatever a pickle asks for. Only for files from a source that is trusted
            with this machine.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: the file is damaged, is of no known kind, holds no tensors by name, or is a
            pickle that needs more than tensors and plain values.
    """
    path = local_file(source)
    try:
        content, record = _read(path, allow_pickle)
    except WeightError as error:
        raise WeightError(f"{source} is not read: {error}") from error
    except Exception as error:  # parsers of damaged files raise whatever they stumble over
        reason = str(error).strip().splitlines()
        detail = reason[0] if reason else type(error).__name__
        raise WeightError(
            f"{source} is not read, it is damaged or no weight file: {detail}"
        ) from error
    tensors = _unwrapped(content)
    if not tensors:
        raise WeightError(f"{source} holds no tensors by name")
    return WeightFile(str(source), tensors, {**_record(content), **record})


def _read(path: Path, allow_pickle: bool) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(16)
    if len(start) < 9:
        raise WeightError("it is empty or cut off")
    if start.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
        return _read_torch(path, allow_pickle), {}
    if start[8:9] == b"{":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    if start.startswith(_LEGACY_TORCH):
        if allow_pickle:
            return torch.load(path, map_location="cpu", weights_only=False), {}
        try:
            return _load_tensors(path), {}
        except pickle.UnpicklingError as error:
            if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise _needs(needed[1]) from None
            raise
    if start.startswith(b"\x80"):
        content = _read_numpy_pickle(path, allow_pickle)
        return _checked_detectron2(content), {}
    raise WeightError("it is neither safetensors, nor a torch file, nor a Detectron2 pickle")


_LEGACY_TORCH = b"\x80\x02\x8a\x0a"  # the magic number that begins torch's files before 1.6


def _read_torch(path: Path, allow_pickle: bool) -> Any:
    if allow_pickle:
        return torch.load(path, map_location="cpu", weights_only=False)
    try:
        return _load_tensors(path)
    except pickle.UnpicklingError:
        # MMEngine keeps histories and more next to the tensors. They are read as opaque objects:
        # their types are neither imported nor run.
        opaque = _opaque_pickle()
        content = torch.load(path, map_location="cpu", pickle_module=opaque, weights_only=False)
        if not _is_mmengine(content):
            raise _needs(", ".join(sorted(opaque.refused)[:3])) from None
        return content


def _needs(names: str) -> WeightError:
    return WeightError(
        f"it is a pickle that needs {names}; allowed are tensors and plain values "
        "(tools/convert_weights.py --allow-pickle converts a file that you trust)"
    )


def _load_tensors(path: Path) -> Any:
    """``torch.load`` of tensors and plain values; what others allowed in this process is not."""
    kept = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.add_safe_globals(kept)


# What tensors are made of in a pickle of torch; nothing here runs what a file brings along.
_TENSOR_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _Opaque:
    """Stands for an object of a type that is not imported."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __setitem__(self, key, value):
        pass


def _opaque_pickle() -> SimpleNamespace:
    """A pickle module for ``torch.load`` that imports nothing but what tensors are made of."""
    refused: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _TENSOR_GLOBALS:
                return _TENSOR_GLOBALS[module, name]
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            refused.add(f"{module}.{name}")
            return _Opaque

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(Unpickler=Unpickler, load=load, refused=refused, __name__="opaque")


def _is_mmengine(content: Any) -> bool:
    meta = content.get("meta") if isinstance(content, dict) else None
    return isinstance(meta, dict) and "mmengine_version" in meta and "state_dict" in content


def _read_numpy_pickle(path: Path, allow_pickle: bool) -> Any:
    """A pickle of numpy arrays and plain values, as Detectron2 publishes weights."""
    core = getattr(np, "_core", None) or np.core  # its name before numpy 2
    allowed = {
        ("_codecs", "encode"): _latin_bytes,
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (f"numpy.{package}.multiarray", name): getattr(core.multiarray, name)
            for package in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        },
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in allowed:
                return allowed[module, name]
            if allow_pickle:
                return super().find_class(module, name)
            raise _needs(f"{module}.{name}")

    return Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()


def _latin_bytes(text: str, encoding: str) -> bytes:
    """What pickles of Python 2 call to make bytes; the codec machinery itself is not offered."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise WeightError(f"it encodes {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


def _checked_detectron2(content: Any) -> Any:
    """Refuse Detectron2's MSRA ResNets.

    They take BGR and have the stride in the first 1×1 convolution: they fit torchvision's blocks by
    shape, and are wrong there.
    """
    if isinstance(content, dict):
        author = str(content.get("__author__", ""))
        names = content.get("model", content)
        caffe = any(re.match(r"(conv1_|res\d_\d_branch)", str(name)) for name in names)
        if caffe or author in ("Caffe2", "MSRA", "Detectron2 Model Zoo"):
            raise WeightError(
                f"it is of Caffe's ResNets (author {author or 'not given'!r}): BGR images and the "
                "stride in the first 1×1 convolution, which fit our networks by shape only; take "
                "torchvision's weights"
            )
    return content


def _unwrapped(content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        inner = content.get(key) if isinstance(content, dict) else None
        content = inner if isinstance(inner, dict) else content
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value))
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = value.detach()
    return tensors


def _record(content: Any) -> dict[str, str]:
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return {}
    return {str(k): str(v) for k, v in meta.items() if isinstance(v, (str, int, float))}


def local_file(source: str | Path) -> Path:
    """The path of a source; an ``https://`` address is downloaded once and checked every time.

    The address says its SHA-256, whole or its first 8 digits or more: ``…#sha256=<hash>``, or in
    the file's name as torch hub has it, ``resnet50-0676ba61.pth``. ``torchvision://resnet50`` is
    torchvision's address. Files are kept in ``gram_backbones`` below torch hub's folder.

    Raises:
        FileNotFoundError: there is no such file, or it could not be downloaded.
        WeightError: an address without a hash, of another scheme, or whose file has another hash.
    """
    if str(source).startswith("torchvision://"):
        source = _torchvision_address(str(source).removeprefix("torchvision://"))
    if "://" not in str(source):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no weight file {path}")
        return path
    parts = urlsplit(str(source))
    if parts.scheme != "https":
        raise WeightError(f"{source} is not read: allowed are paths and https:// addresses")
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", parts.path)
    given = re.fullmatch(r"sha256=([0-9a-f]{8,64})", parts.fragment)
    wanted = (given or named)[1] if given or named else None
    if wanted is None:
        raise WeightError(
            f"{source} is not read: it has no hash to check. Append #sha256=<the file's SHA-256>"
        )
    folder = Path(torch.hub.get_dir()) / "gram_backbones"
    path = folder / f"{wanted[:16]}-{Path(parts.path).name}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(str(source).partition("#")[0], path, wanted)
    if not file_hash(path).startswith(wanted):
        raise WeightError(
            f"{path} was changed: its SHA-256 does not begin with {wanted}; delete it"
        )
    return path


def _download(address: str, path: Path, wanted: str) -> None:
    try:
        torch.hub.download_url_to_file(address, str(path), hash_prefix=wanted, progress=False)
    except RuntimeError as error:  # torch hub's word for another hash; it has removed the file
        raise WeightError(f"{address} has another SHA-256 than {wanted}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"{address} could not be downloaded: {error}") from error


def _torchvision_address(name: str) -> str:
    """The address of ``<model>.<weights>``, or of ``<model>``'s first weights, as in MMEngine."""
    model, _, weights = name.partition(".")
    try:
        known = torchvision.models.get_model_weights(model)
    except ValueError as error:
        raise WeightError(f"torchvision://{name} is not read: {error}") from error
    for member in known:
        if member.name.lower() == (weights.lower() or "imagenet1k_v1"):
            return member.url
    raise WeightError(
        f"torchvision://{name} is not read: {weights!r} is none of {[m.name for m in known]}"
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
    """Write tensors with their record, at once or not at all.

    Args:
        path: ``.safetensors``, whose metadata gets the record; ``.pth``, a dict with the tensors
            under ``key`` and the record under ``meta``; or ``.pkl``, numpy arrays as Detectron2
            publishes them.
        tensors: by name.
        record: plain values.
        key: what the framework that reads a ``.pth`` calls the tensors, ``model`` (Detectron2) or
            ``state_dict`` (MMEngine).

    Raises:
        WeightError: another ending.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # Tensors that share memory are refused there.
        save_file({k: v.clone() for k, v in tensors.items()}, part, metadata=dict(record))
    elif path.suffix in (".pth", ".pt"):
        torch.save({key: tensors, "meta": dict(record)}, part)
    elif path.suffix == ".pkl":
        arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
        content = {"model": arrays, "__author__": "gram_backbones", "meta": dict(record)}
        part.write_bytes(pickle.dumps(content, protocol=4))
    else:
        raise WeightError(f"{path} is not written; allowed are .safetensors, .pth, .pt and .pkl")
    os.replace(part, path)
