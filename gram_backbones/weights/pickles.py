"""Pickles read by an interpreter that imports nothing and calls nothing that a file names.

It knows the opcodes of plain values and a table of names: what tensors, numpy arrays and plain
containers consist of. Whatever else a pickle would build becomes an inert `Opaque`. Python's own
reader, and torch's with ``weights_only``, run in the same way on trust that what they may call is
harmless; numpy's types, for instance, are not.
"""

from __future__ import annotations

import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

# A detector of 500 tensors with its optimiser takes 40,000. This bounds the time to seconds.
MAX_STEPS = 2_000_000


class WeightError(ValueError):
    """A weight file cannot be read or does not fit. Nothing was changed."""


class DamagedError(WeightError):
    """A file is not what was written: bytes are missing or have changed."""


class Opaque:
    """What a pickle names and would build. It is never imported.

    Attributes:
        name: module and name, such as ``builtins.eval``.
        arguments: of the call, None if the name itself is meant.
        built: what the state was built into, if the reader knows the name.
    """

    __slots__ = ("name", "arguments", "built")

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name = name
        self.arguments = arguments
        self.built: Any = None


_PLAIN = (str, int, float, bool, bytes, type(None))
Storage = Callable[[str, torch.dtype, int], Tensor]
Finisher = Callable[[tuple, Any], Any]


def load_pickle(
    stream: IO[bytes],
    storage: Storage | None = None,
    finishers: Mapping[str, Finisher] | None = None,
) -> Any:
    """Read a pickle of plain values, numpy arrays and tensors.

    Args:
        stream: a file in memory or mapped to memory; it is read up to the pickle's end.
        storage: gives the memory of a torch storage, of shape ``(numel,)``, for its key, dtype and
            number of elements.
        finishers: further names, and what makes a value of the arguments and state of each.

    Returns:
        The content; what has another name is an `Opaque` in it.

    Raises:
        WeightError: it has opcodes that plain values do not need, keys that are not plain, or more
            than `MAX_STEPS` steps.
        Exception: whatever a damaged pickle causes.

    Examples:
        >>> import io, pickle
        >>> load_pickle(io.BytesIO(pickle.dumps({"lr": 0.1, "steps": [1, 2]})))
        {'lr': 0.1, 'steps': [1, 2]}
        >>> load_pickle(io.BytesIO(pickle.dumps(eval))).name
        'builtins.eval'
    """
    return _Interpreter(storage, {**_FINISHERS, **(finishers or {})}).run(stream)


def opaque_names(content: Any) -> list[str]:
    """The names of all that is opaque in what was read, sorted.

    Examples:
        >>> opaque_names({"a": [1, Opaque("os.system", ("ls",))]})
        ['os.system']
    """
    names, seen, left = set(), set(), [content]
    while left:  # not recursive: a file may nest as deep as it likes
        value = left.pop()
        if isinstance(value, Opaque):
            names.add(value.name)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return sorted(names)


class _Interpreter:
    def __init__(self, storage: Storage | None, finishers: Mapping[str, Finisher]):
        self._storage = storage
        self._finishers = finishers
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under open marks
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        argument: Any
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step == MAX_STEPS:
                raise WeightError(f"it is a pickle of more than {MAX_STEPS} steps")
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _MEMO_INDEX:
                self._memo[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._remembered(argument))
            elif method := getattr(self, f"_{name.lower()}", None):
                method(argument)
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise WeightError(f"it is a pickle with {name}, which no plain value needs")
        return self._stack.pop()

    def _remembered(self, index: int) -> Any:
        value = self._memo[index]
        if isinstance(value, Opaque) and value.built is not None:
            value = self._memo[index] = value.built
        return value

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    # Containers

    def _tuple(self, _: None) -> None:
        items = tuple(self._since_mark())  # this puts the stack below back in place
        self._stack.append(items)

    def _take(self, count: int) -> tuple:
        if len(self._stack) < count:
            raise WeightError("it is damaged or not a weight file")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        return items

    def _tuple1(self, _: None) -> None:
        self._stack.append(self._take(1))

    def _tuple2(self, _: None) -> None:
        self._stack.append(self._take(2))

    def _tuple3(self, _: None) -> None:
        self._stack.append(self._take(3))

    def _append(self, _: None) -> None:
        self._extend(self._take(1))

    def _appends(self, _: None) -> None:
        self._extend(tuple(self._since_mark()))

    def _extend(self, items: tuple) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):  # items of an opaque list are left out
            raise WeightError(f"it appends to a {type(target).__name__}")

    def _setitem(self, _: None) -> None:
        self._update(self._take(2))

    def _setitems(self, _: None) -> None:
        self._update(tuple(self._since_mark()))

    def _update(self, items: tuple) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_plain(key)] = value
        elif not isinstance(target, Opaque):
            raise WeightError(f"it sets items of a {type(target).__name__}")

    # Names and what is made of them

    def _global(self, argument: str) -> None:
        self._stack.append(Opaque(argument.replace(" ", ".")))  # as genops joins the two

    def _stack_global(self, _: None) -> None:
        module, name = self._take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise WeightError("it is a pickle with a name that is no text")
        self._stack.append(Opaque(f"{module}.{name}"))

    def _reduce(self, _: None) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Opaque) or not isinstance(arguments, tuple):
            raise WeightError(f"it is a pickle that calls a {type(function).__name__}")
        builder = _BUILDERS.get(function.name) if function.arguments is None else None
        made = builder(*arguments) if builder else Opaque(function.name, arguments)
        self._stack.append(made)

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        self._take(1)  # keyword arguments, which nothing that is built here has
        self._reduce(None)

    def _build(self, _: None) -> None:
        value, state = self._take(2)
        if isinstance(value, Opaque):
            finisher = self._finishers.get(value.name)
            if finisher and value.arguments is not None and value.built is None:
                value.built = finisher(value.arguments, state)
                value = value.built
        elif isinstance(value, OrderedDict):  # versions of modules, beside a state dict
            value._metadata = state["_metadata"]  # type: ignore[attr-defined]
        else:
            raise WeightError(f"it sets the state of a {type(value).__name__}")
        self._stack.append(value)

    def _binpersid(self, _: None) -> None:
        match self._take(1)[0]:
            case ("storage", Opaque() as kind, str() as key, str(), int() as numel, *rest):
                dtype = _STORAGES.get(kind.name.replace("torch.cuda.", "torch."))
                if self._storage is None or dtype is None or any(rest) or numel < 0:
                    raise WeightError(f"it holds a {kind.name} of {numel} elements")
                self._stack.append(self._storage(key, dtype, numel))
            case _:
                raise WeightError("it is a pickle with a reference that is no torch storage")


_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MEMO_INDEX = frozenset(("BINPUT", "LONG_BINPUT"))


def _plain(key: Any) -> Any:
    """A key; hashing nested tuples could take forever."""
    if not isinstance(key, _PLAIN):
        raise WeightError(f"it has a {type(key).__name__} as a key")
    return key


def _ordered(pairs: list[list] | tuple = ()) -> OrderedDict:
    return OrderedDict((_plain(key), value) for key, value in pairs)


def _counter(counts: dict) -> Counter:
    """The milestones of a learning rate schedule, for instance."""
    if not isinstance(counts, dict):
        raise WeightError(f"it counts a {type(counts).__name__}")
    return Counter(counts)


def _plain_set(items: list | tuple = ()) -> set:
    return {_plain(item) for item in items}


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Bytes as protocols before 3 store them."""
    if encoding not in ("latin1", "latin-1"):
        raise WeightError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _dtype(arguments: tuple, state: tuple) -> np.dtype:
    code, order = arguments[0], state[1]
    if not re.fullmatch(r"b1|[iu][1248]|f[248]", code) or order not in ("<", ">", "|", "="):
        raise WeightError(f"it holds an array of the type {order}{code}")
    return np.dtype(code).newbyteorder(order)


def _array(arguments: tuple, state: tuple) -> np.ndarray:
    _, shape, dtype, is_fortran, data = state
    flat = _numbers(dtype, data)
    return np.array(flat.reshape(shape, order="F" if is_fortran else "C"))


def _from_buffer(data: bytearray, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """An array as protocol 5 stores it."""
    return np.array(_numbers(dtype, data).reshape(shape, order=order))  # type: ignore[call-overload]


def _scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
    (value,) = _numbers(dtype, data)
    return value


def _numbers(dtype: np.dtype, data: bytes | bytearray | str) -> np.ndarray:
    """The flat array of a buffer, in the machine's byte order."""
    if not isinstance(dtype, np.dtype):
        raise WeightError("it holds an array of an unknown type")
    data = data.encode("latin1") if isinstance(data, str) else data  # str of Python 2
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *others: Any) -> Tensor:
    """A view of a storage; torch refuses one that leaves it."""
    if not isinstance(storage, Tensor) or len(others) > 2 and others[2]:
        raise WeightError("it holds a tensor that is conjugated, negated or without a storage")
    made = torch.as_strided(storage, size, stride, offset)
    if made.numel() > storage.numel():
        raise WeightError(f"it holds a tensor of {made.numel()} elements in {storage.numel()}")
    return made


def _parameter(data: Tensor, *others: Any) -> Tensor:
    return data


def _numpy_names(name: str) -> Iterator[str]:
    """A name of numpy's C module, before numpy 2 and since."""
    return (f"numpy.{package}.multiarray.{name}" for package in ("core", "_core"))


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _plain_set,
    "__builtin__.set": _plain_set,
    "_codecs.encode": _latin_bytes,
    "collections.defaultdict": lambda *factory: {},
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    **dict.fromkeys(_numpy_names("scalar"), _scalar),
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
_FINISHERS: dict[str, Finisher] = {
    "numpy.dtype": _dtype,
    **dict.fromkeys(_numpy_names("_reconstruct"), _array),
}
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
