"""What a run of MMEngine needs before it starts: data root, devices, trusted checkpoints."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from ..weight_files import read_weight_file
from ..weights import fit_detector_parts, load_weights
from .interface import MMDetInterface

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def set_data_root(cfg: Config, root: str) -> None:
    """Replace the config's ``data_root`` wherever a path begins with it.

    Raises:
        ValueError: the config has no ``data_root``.
    """
    old = cfg.get("data_root")
    if not old:
        raise ValueError(
            "the config has no top-level data_root to replace; set the paths of its dataloaders "
            "and evaluators by --cfg-options"
        )
    root = os.path.join(root, "")
    moved = _replaced({key: cfg.get(key) for key in cfg.keys()}, old, root)
    for key, value in moved.items():
        cfg[key] = value


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value[len(old) :] if value.startswith(old) else value
    if isinstance(value, dict):
        return type(value)({k: _replaced(v, old, new) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, old, new) for item in value)
    return value


def check_data(cfg: Config, loaders: Iterable[str] = LOADERS) -> None:
    """Make sure that the data sets' local files are there; reads no file.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing; the message lists the
            paths.
    """
    missing = []
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get("dataset")):
            root = dataset.get("data_root") or ""
            prefixes = [v for v in (dataset.get("data_prefix") or {}).values() if v]
            paths = [p for p in [dataset.get("ann_file"), *prefixes] if isinstance(p, str) and p]
            paths = [path if "://" in path else os.path.join(root, path) for path in paths]
            missing += [p for p in paths if "://" not in p and not os.path.exists(p)]
    if missing:
        listed = "\n".join(f"  {path}" for path in dict.fromkeys(missing))
        raise FileNotFoundError(
            f"data set not found; looked at\n{listed}\n"
            "Give the folder that holds annotations/, train2017/ and val2017/: --data-root FOLDER"
        )


def _datasets(dataset: dict | None) -> Iterator[dict]:
    """All data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not dataset:
        return
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets", [])
    for item in inner:
        yield from _datasets(item)
    if not inner:
        yield dataset


def prepare_cpu_processes(cfg: Config) -> None:
    """Let several processes train without GPUs; nothing happens where there are GPUs.

    MMEngine calls CUDA when it starts processes, and gives DDP device ids, an error on CPUs.
    """
    if cfg.get("launcher", "none") == "none" or torch.cuda.is_available():
        return
    torch.distributed.init_process_group("gloo")
    wrapper = cfg.get("model_wrapper_cfg") or {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
    }
    cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}


def end_processes() -> None:
    """Leave the process group together, as torch asks; MMEngine does not.

    A process that goes first closes connections on which another may still be sending.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@contextmanager
def own_checkpoints() -> Iterator[None]:
    """Let ``torch.load`` read what MMEngine writes next to tensors: histories and numbers.

    From torch 2.6 on it refuses them by default; upstream's MMEngine was written before that, and
    cannot read its own checkpoints. `gram_backbones.weight_files` is as strict inside as outside.
    """
    core = getattr(np, "_core", None) or np.core  # its name before numpy 2
    multiarray = core.multiarray
    types = {type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "u1", "?")}
    known = [HistoryBuffer, np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar]
    # A history names its methods by getattr. That lets a file call more than tensors need: what is
    # read here is trusted.
    with torch.serialization.safe_globals([*known, *types, defaultdict, getattr]):
        yield


class GramRunner(Runner):
    """MMEngine's runner, strict about what it loads.

    ``load_from`` is read as `gram_backbones.weight_files` reads: nothing in the file runs. It fills
    the whole detector; a file of a backbone alone, or of another detector, is refused.
    A resumed run reads MMEngine's own checkpoint, which is trusted, and restores every tensor.

    Raises:
        FileNotFoundError, gram_backbones.weight_files.WeightError: see
            :func:`gram_backbones.weights.load_weights` and
            :func:`gram_backbones.weights.fit_detector_parts`; nothing was changed.
    """

    _resumes = False

    def resume(self, *args, **kwargs) -> None:
        """MMEngine's, with every tensor of the model restored."""
        self._resumes = True
        try:
            with own_checkpoints():
                super().resume(*args, **kwargs)
        finally:
            self._resumes = False

    def load_checkpoint(self, filename: str, *args, **kwargs):
        """Fill the detector from a file; see the class."""
        if self._resumes:
            return super().load_checkpoint(filename, *args, **{**kwargs, "strict": True})
        file = read_weight_file(filename)
        model = getattr(self.model, "module", self.model)
        ours = {n: m for n, m in model.named_modules() if isinstance(m, MMDetInterface)}
        inside = tuple(f"{name}." for name in ours)
        rest = {n: v for n, v in model.state_dict().items() if not n.startswith(inside)}
        rest = {n: v for n, v in rest.items() if not n.endswith("num_batches_tracked")}
        values, resized = fit_detector_parts(rest, file.tensors, str(filename))
        for module in ours.values():
            for line in load_weights(module, file).lines():
                self.logger.info(line)
        model.load_state_dict(values, strict=False)
        self.logger.info(f"loaded {len(values)} tensors of neck and heads from {filename}")
        if resized:
            names = ", ".join(resized)
            self.logger.warning(f"kept at their start, for another number of classes: {names}")
        self._has_loaded = True
