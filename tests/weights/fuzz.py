"""Mutated weight files: ``python -m tests.weights.fuzz COUNT`` tries that many.

Whatever a file holds, reading it ends in success or in the project's own error.
"""

import pickle
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

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


def fuzz(count: int, seed: int = 0) -> Counter:
    """How often reading ended how; raises what is neither success nor our error."""
    rng, outcomes = random.Random(seed), Counter()
    network = AOGNet(SMALL, num_classes=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = [(file.suffix, file.read_bytes()) for file in write_seeds(folder, before)]
        for index in range(count):
            suffix, data = rng.choice(seeds)
            file = folder / f"mutated{suffix}"
            file.write_bytes(mutate(data, rng))
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
    return outcomes


if __name__ == "__main__":
    np.seterr(all="ignore")
    print(dict(fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
