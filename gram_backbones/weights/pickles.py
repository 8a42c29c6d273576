"""Pickles read without importing or running what they name.

A pickle gets only the types that tensors and numpy arrays consist of. They are behind wrappers
without attributes, so that a file cannot change anything in the process.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class WeightError(ValueError):
    """A weight file cannot be read or does not fit. Nothing was changed."""


def refused_pickle(names: str) -> WeightError:
    """The error for a pickle that needs more than tensors and plain values."""
    return WeightError(
        f"it is a pickle that needs {names}; allowed are tensors and plain values "
        "(gram-backbones convert --allow-pickle converts a file that you trust)"
    )


def check_indices(data: bytes) -> None:
    """Refuse a pickle whose memo would be larger than the file, as the reader would allocate it.

    Raises:
        WeightError: the memo is too large, or the pickle is truncated or damaged.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
                raise WeightError(f"it is a pickle of {len(data)} bytes with entry {argument}")
    except ValueError as error:
        if isinstance(error, WeightError):
            raise
        raise WeightError("it is damaged or not a weight file") from error


class _Call:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)
    _function: Callable

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any):
        raise WeightError(f"it sets {name!r} of a function")

    def __setstate__(self, state: Any):
        raise WeightError("it sets the state of a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


# What tensors consist of in a torch pickle. Nothing here runs code from the file.
_TENSOR_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Call(torch._utils._rebuild_parameter),
    ("torch", "Size"): _Call(torch.Size),
}


class _Opaque:
    """Placeholder for an object whose type is not imported."""

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


def opaque_pickle() -> SimpleNamespace:
    """A pickle module for ``torch.load`` that imports only what tensors consist of."""
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


def read_numpy_pickle(data: bytes, allow_pickle: bool) -> Any:
    """A pickle of numpy arrays and plain values, as Detectron2 publishes weights."""
    core = getattr(np, "_core", None) or np.core  # its name before numpy 2
    allowed = {
        ("_codecs", "encode"): _Call(_latin_bytes),
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (f"numpy.{package}.multiarray", name): _Call(getattr(core.multiarray, name))
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
            raise refused_pickle(f"{module}.{name}")

    return Unpickler(io.BytesIO(data), encoding="latin1").load()


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Make bytes as pickles of Python 2 do, without access to other codecs."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise WeightError(f"it encodes {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")
