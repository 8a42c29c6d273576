"""MMEngine's checkpoints, read without running anything in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ..weights.pickled import read_checkpoint
from ..weights.pickles import WeightError


@contextmanager
def safe_loading(trust: bool = False) -> Iterator[None]:
    """Let MMEngine load files by `gram_backbones.weights.pickled` instead of ``torch.load``.

    MMEngine itself goes on with a file that ``torch.load`` refuses by letting it run its code.

    Args:
        trust: let a file run arbitrary code.
    """

    def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
        remedy = "--trust-checkpoint reads a file that you trust"
        content = read_checkpoint(filename, trust=trust, finishers=_FINISHERS, remedy=remedy)
        if not trust and isinstance(content.get("meta"), dict):
            content["meta"].pop("config", None)  # MMEngine would run it, and does not write it
        return content

    schemes = CheckpointLoader._schemes
    theirs = schemes[""]
    schemes[""] = load_from_local
    try:
        yield
    finally:
        schemes[""] = theirs


def _history(arguments: tuple, state: dict[str, Any]) -> HistoryBuffer:
    values, counts = state["_log_history"], state["_count_history"]
    if not isinstance(values, np.ndarray) or not isinstance(counts, np.ndarray):
        raise WeightError("it holds a history without values")
    return HistoryBuffer(values, counts, int(state["max_length"]))


_FINISHERS = {"mmengine.logging.history_buffer.HistoryBuffer": _history}
