"""Mutated weight files: ``python -m tests.weights.fuzz COUNT SEED`` tries that many.

Whatever a file holds, reading it ends in success or in the project's own error, in bounded time and
memory. Every file has a seed of its own.
"""

import io
import json
import pickle
import pickletools
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

from gram_backbones import AOGNet, load_weights
from gram_backbones.aognet import AOGNetVariant
from gram_backbones.weights.files import WeightError

SMALL = AOGNetVariant((1, 1), (1, 1), (4, 4, 4), ("keep_first", "keep_last"))


def write_seeds(folder: Path, state: dict) -> list[Path]:
    """One valid file of every kind."""
    state = {name: value.clone() for name, value in state.items()}
    torch.save({"state_dict": state, "meta": {"model": "small"}}, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    other = {"meta": {"mmengine_version": "0.10"}, "state_dict": state, "hub": Path("history")}
    torch.save(other, folder / "mmengine.pth")
    save_file(state, folder / "file.safetensors", metadata={"model": "small"})
    arrays = {name: value.numpy() for name, value in state.items()}
    content = {"model": arrays, "__author__": "torchvision"}
    (folder / "numpy.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return sorted(folder.iterdir())


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    """The bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or inserted; early ones more often, where headers are."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = min(int(rng.expovariate(8 / len(data))), len(data) - 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at : len(data) if rng.random() < 0.3 else at + rng.randrange(1, 64)]
        elif kind == 3:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 16)))
        else:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
        data = data or bytearray(b"\0")
    return bytes(data)


def mutate_structure(data: bytes, rng: random.Random) -> bytes:
    """A change that leaves the rest readable: of a header, a directory or the opcodes."""
    if data.startswith(b"PK"):
        return _mutate_archive(data, rng)
    if data.startswith(b"\x80"):
        return _mutate_opcodes(data, rng)
    return _mutate_header(data, rng)


NUMBERS = (-1, 0, 1, 2, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 64)


def _mutate_header(data: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(header))
    entry, number = header[name], rng.choice(NUMBERS)
    kind = rng.randrange(6)
    if kind == 0:
        header[name] = rng.choice(([], None, {}, "F32", {**entry, "dtype": "F8_E4M3"}))
    elif kind == 1 and "shape" in entry:
        entry["shape"] = [*entry["shape"], number]
    elif kind == 2 and "data_offsets" in entry:
        entry["data_offsets"][rng.randrange(2)] = number
    elif kind == 3:
        header["x" * rng.randrange(1, 9)] = entry
    elif kind == 4:
        del header[name]
    text = json.dumps(header).encode()
    size = len(text) if kind != 5 else number % (1 << 64)
    return struct.pack("<Q", size) + text + data[8 + struct.unpack("<Q", data[:8])[0] :]


def _mutate_archive(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.4:  # the directory at the end: sizes, offsets, names, methods
        changed, start = bytearray(data), data.index(b"PK\x01\x02")
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(start, len(changed) - 4)
            width, number = rng.choice((1, 2, 4)), rng.choice(NUMBERS)
            changed[at : at + width] = (number % 256**width).to_bytes(width, "little")
        return bytes(changed)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as plain, zipfile.ZipFile(target, "w") as made:
        names = plain.namelist()
        victim = rng.choice(names)
        for name in names:
            content = plain.read(name)
            if name.endswith("data.pkl"):
                content = _mutate_opcodes(content, rng)
            elif name == victim:
                content = rng.choice((content, content[:-1], content * 2, b""))
            made.writestr(name if rng.random() < 0.98 else name + "x", content)
    return target.getvalue()


def _mutate_opcodes(data: bytes, rng: random.Random) -> bytes:
    """Opcodes of a pickle changed, left out, repeated, moved, or with another argument."""
    starts = [at for _, _, at in pickletools.genops(data)]
    pieces = [data[a:b] for a, b in zip(starts, starts[1:])]
    rest = data[starts[-1] :]  # STOP, and what follows
    codes = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    for _ in range(rng.choice((1, 1, 2, 6))):
        at, kind = rng.randrange(1, len(pieces)), rng.randrange(6)
        if kind == 0:
            pieces[at] = rng.choice(codes) + pieces[at][1:]
        elif kind == 1:
            pieces[at] = b""
        elif kind == 2:
            pieces[at] *= rng.choice((2, 2, 50))
        elif kind == 3:
            other = rng.randrange(1, len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind == 4:
            pieces[at] = pickle.dumps(rng.choice(NUMBERS), protocol=2)[2:-1]
        else:
            module, name = rng.choice((("os", "getpid"), ("builtins", "len"), ("torch", "zeros")))
            pieces[at] = f"c{module}\n{name}\n".encode() + pieces[at]
    return b"".join(pieces) + rest


SECONDS, MEMORY = 5.0, 64 << 20  # that a file of under 64 kB may take
RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _peak_memory() -> int:
    """Peak memory of this process in bytes; 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def fuzz(count: int, seed: int = 0) -> tuple[Counter, float, int]:
    """How often reading ended how, the longest time in seconds, and the most memory in bytes.

    Raises:
        AssertionError: a file took too much, or changed a network that refused it.
        BaseException: what is neither success nor our error.
    """
    outcomes: Counter = Counter()
    slowest, largest = 0.0, 0
    network = AOGNet(SMALL, num_classes=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # A refusal names the models that the file fits, which builds them all: seconds for any file.
    unnamed = mock.patch("gram_backbones.weights.fit.fitting_models", return_value=[])
    with tempfile.TemporaryDirectory() as name, unnamed:
        folder = Path(name)
        seeds = [(file.suffix, file.read_bytes()) for file in write_seeds(folder, before)]
        for index in range(seed, seed + count):
            rng = random.Random(index)
            suffix, data = rng.choice(seeds)
            change = rng.choice((mutate, mutate_structure))
            file = folder / f"mutated{suffix}"
            file.write_bytes(change(data, rng))
            if RESET.exists():
                RESET.write_text("5")
            began, start = time.perf_counter(), _peak_memory()
            try:
                load_weights(network, file)
                outcomes["loaded"] += 1
                network.load_state_dict(before)
            except WeightError:
                outcomes["refused"] += 1
                now = network.state_dict()
                assert all(torch.equal(now[n], v) for n, v in before.items()), index
            except BaseException:
                Path("fuzz_failure" + suffix).write_bytes(file.read_bytes())
                raise
            took, used = time.perf_counter() - began, _peak_memory() - start
            slowest, largest = max(slowest, took), max(largest, used)
            assert took < SECONDS and used < MEMORY, f"file {index}: {took} s, {used} bytes"
    return outcomes, slowest, largest


if __name__ == "__main__":
    np.seterr(all="ignore")
    print(*fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
