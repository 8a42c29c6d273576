"""A run's files, to resume it and to use as a detector's weights.

A checkpoint is a dict of tensors and plain values, of which nothing is run:

- ``state_dict``: the weights to use, under this project's names: the network's, or those of its
  moving average if they had the higher top-1;
- ``meta``: strings that describe the weights (:func:`describe`);
- ``training``: what :class:`gram_backbones.classification.engine.Trainer` needs to resume, also
  in the middle of an epoch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic import flush, replacing
from ..preprocessing import Preprocessing
from ..weights import pickled
from ..weights.checkpoints import load_first_whole, saving, write_content
from ..weights.fit import match
from ..weights.pickled import check_sums
from ..weights.pickles import DamagedError

LAST, PREVIOUS = "last.pth", "previous.pth"


def describe(
    preprocessing: Preprocessing,
    values: Mapping[str, Any],
    source: str = "tools/train_classifier.py",
) -> dict[str, str]:
    """The ``meta`` of a checkpoint: plain strings.

    Args:
        preprocessing: of the network's images, pixels in [0, 255].
        values: further entries, such as ``model``, ``dataset`` and ``top1`` in percent.
        source: program that wrote the file.
    """
    return {
        "mean": str(preprocessing.mean),
        "std": str(preprocessing.std),
        "channel_order": preprocessing.channel_order,
        "source": source,
        **{key: str(value) for key, value in values.items()},
    }


def write_checkpoint(path: Path, content: dict[str, Any], *, best: bool) -> None:
    """Write a checkpoint whole or not at all, and the best one also as ``best.pth``.

    The file that it replaces becomes ``previous.pth``, unless that one is damaged.

    Raises:
        SavingError: the file cannot be written; those before it are as they were.
    """
    with saving(path, path) as part:
        write_content(content, part)
        flush(part)  # a disk that is full says so here at the latest, with both files in place
        with suppress(DamagedError, FileNotFoundError):  # none yet, or another process moved it
            check_sums(path)
            os.replace(path, path.with_name(PREVIOUS))
    if best:
        with saving(path.with_name("best.pth"), path) as part:
            shutil.copyfile(path, part)


def write_metrics(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per epoch. The file is rewritten, so a resumed run repeats no epoch."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's dict to resume from, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no ``state_dict``, or holds more than tensors and plain values.
    """
    content = pickled.read_checkpoint(path)
    if not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} is not a checkpoint of a classifier: it has no state_dict")
    return content


def read_last(path: str | Path, rank: int = 0) -> tuple[Path, dict[str, Any]]:
    """A checkpoint to resume from; ``previous.pth`` where ``last.pth`` is damaged or missing.

    Args:
        path: the checkpoint.
        rank: of the process; the first one says which file was passed over.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`.
    """
    path = Path(path)
    previous = path.with_name(PREVIOUS)
    files = [path, previous] if path.name == LAST and previous.is_file() else [path]
    return load_first_whole(files, read_checkpoint, print if rank == 0 else str)


def fill_classifier(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load every tensor of the state in which a run ended.

    Raises:
        ValueError: tensors are missing, left over or of another shape; the message names some.
    """
    own = model.state_dict()
    matched = match(own, state, finite=False)
    matched.problems["missing"] = [name for name in own if name not in state]  # counters too
    matched.problems["left over"] = [name for name in state if name not in own]
    if not matched:
        raise ValueError(matched.complaint(f"{source} does not fit: it"))
    model.load_state_dict(state)


def random_state() -> dict[str, Any]:
    """The states of python's, numpy's and torch's generators, as values of a checkpoint."""
    name, keys, *rest = cast(Any, np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators into the states of :func:`random_state`."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
