"""MMEngine's checkpoints: read without running anything in them, and which of them are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner

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


class _Later:
    """A file backend that notes what it is asked to remove."""

    def __init__(self, backend: Any):
        self._backend = backend
        self.removed: list[str] = []

    def remove(self, file: str) -> None:
        self.removed.append(file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@HOOKS.register_module()
class GramCheckpointHook(CheckpointHook):
    """MMEngine's hook; a checkpoint is deleted when the next is whole, and the last two are kept.

    MMEngine's deletes first. If the process dies then, ``max_keep_ckpts=1`` leaves nothing.

    Args:
        max_keep_ckpts: how many to keep, all by default; 1 counts as 2.
        kwargs: see MMEngine's class.
    """

    file_backend: Any

    def __init__(self, *args: Any, max_keep_ckpts: int = -1, **kwargs: Any):
        keep = max(2, max_keep_ckpts) if max_keep_ckpts > 0 else -1
        super().__init__(*args, max_keep_ckpts=keep, **kwargs)

    def before_run(self, runner: Runner) -> None:
        """Say where the run's checkpoints are; MMEngine works it out when it has resumed."""
        out = str(self.out_dir or runner.work_dir)
        if out != runner.work_dir and "://" not in out:
            runner.saved.place = Path(out, Path(runner.work_dir).name)

    def before_train(self, runner: Runner) -> None:
        """MMEngine's; a folder of its own exists from the start."""
        super().before_train(runner)
        if "://" not in self.out_dir:
            Path(self.out_dir).mkdir(parents=True, exist_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """MMEngine's; the best one so far is deleted when the new one is whole."""
        backend, later = self.file_backend, _Later(self.file_backend)
        self.file_backend = later
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        several = getattr(self, "best_ckpt_path_dict", {})  # where several metrics are watched
        best = {getattr(self, "best_ckpt_path", None), *several.values()}
        for file in later.removed:
            if file not in best:  # a resumed run writes a file of the same name
                backend.remove(file)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        excess: list[int] = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            excess = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            file_client_args=self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if runner.rank:  # the first process notes it
            runner.saved.own = self.last_ckpt
            return
        runner.saved.add(self.last_ckpt)
        for old in excess:
            file = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(file):
                self.file_backend.remove(file)
