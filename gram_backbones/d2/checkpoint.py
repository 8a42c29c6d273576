"""A checkpointer that fills the whole backbone or raises."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..data import check_checkpoint_classes
from ..divergence import require_finite
from ..staged import Variant
from ..weights.checkpoints import SavedCheckpoints, save_checkpoint
from ..weights.detector import fit_detector, is_required
from ..weights.files import WeightError, fetch_file, read_classes
from ..weights.fit import match
from ..weights.pickled import read_checkpoint
from ..weights.published import read_weights
from ..weights.records import is_published
from .roi_heads import GramRes5ROIHeads


class GramCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict about the backbone.

    - A file of a bare backbone fills the backbone and, in a C4 detector, the last stage in the RoI
      heads. It may have any tensor names that `gram_backbones.weights.fit` recognises.
    - A detector's file fills everything. Predictors for another number of classes keep their
      initial values and are named in the log.
    - A resumed run restores everything that Detectron2 saved. Nothing in its checkpoint is run,
      unless ``trust`` allows it. Where the last checkpoint is damaged or missing, it goes on from
      the one before.
    - A checkpoint gets its name when it is whole.

    Detectron2's own class returns normally if no name matches, and the backbone stays random.

    Args:
        model, save_dir, checkpointables: see Detectron2's class.
        heads: which tensors outside the backbone are required: ``"optional"``, or ``"exact"`` for
            evaluation and prediction (see :func:`gram_backbones.weights.detector.fit_detector`).
        accept_license: see :func:`gram_backbones.load_weights`.
        classes: class names of the data, which are saved with the model; empty if unknown.

    Attributes:
        trust: whether the checkpoint of a resumed run may run arbitrary code; False at first.
        saved: the checkpoints of the run.
        file_classes: class names in the file that was loaded last; empty if it had none.

    Raises:
        DataError: the file's class names contradict ``classes``.
        FileNotFoundError: there is no such file.
        WeightError: the file cannot be read or leaves a tensor unfilled. The message lists the
            names, and the model is left as it was.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        heads: str = "optional",
        accept_license: str | None = None,
        classes: Sequence[str] = (),
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self._heads = heads
        self._accept_license = accept_license
        self._classes = list(classes)
        self.saved = SavedCheckpoints(save_dir)
        self._resumed: dict[str, Any] | None = None  # while it is being restored
        self.trust = False
        self.has_loaded = False  # or was asked to load nothing
        self.file_classes: list[str] = []

    def save(self, name: str, **kwargs) -> None:
        """Like Detectron2's, with the class names; the file is written whole or not at all.

        Raises:
            DivergenceError: weights are not finite.
            SavingError: the file cannot be written; those before it are as they were.
        """
        require_finite(self.model, self.saved.last)
        if not self.save_dir:
            return
        if not self.save_to_disk:  # the first process does
            self.saved.own = f"{name}.pth"
            return
        meta = {"meta": {"classes": json.dumps(self._classes)}} if self._classes else {}
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", file)
        content = {"model": self.model.state_dict(), **states, **meta, **kwargs}
        save_checkpoint(content, file, self.saved.last)
        self.saved.add(file.name)

    def has_checkpoint(self) -> bool:
        """Whether a last checkpoint was noted; raises OSError where the disk does not tell."""
        return self.saved.noted

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint, or load ``path``."""
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=False)
        file, self._resumed = self.saved.resume(self._read_run, self.logger.warning)
        try:
            return self.load(str(file.absolute()))
        finally:
            self._resumed = None

    @property
    def has_end(self) -> bool:
        """Whether the run goes on from its whole ``model_final.pth``, or has saved it."""
        return self.saved.own == "model_final.pth"

    def _read_run(self, file: Path) -> dict[str, Any]:
        remedy = "--trust-checkpoint reads a file that you trust"
        return read_checkpoint(file, trust=self.trust, remedy=remedy)

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """Like Detectron2's, but addresses and published names go to our reader unchanged."""
        self.has_loaded = True
        if self._resumed is not None or not path:
            return super().load(path, *args, **kwargs)
        if path.startswith(("https://", "torchvision://")) or is_published(path):
            self._load_model(self._load_file(path))
            return {}
        if "://" not in path:
            # Raises if there is none. Detectron2 would take "run-12:30/…" for an address.
            path = str(fetch_file(path).absolute())
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._resumed is not None:
            return self._resumed
        parts = _parts(getattr(self.model, "module", self.model)).values()
        variants = (getattr(part, "variant", None) for part in parts)
        variant = next((row for row in variants if isinstance(row, Variant)), None)
        file = read_weights(filename, variant, accept_license=self._accept_license)
        return {"model": dict(file.tensors), "__file__": file}

    def _load_model(self, checkpoint: dict[str, Any]):
        model = getattr(self.model, "module", self.model)
        own = model.state_dict()
        file = checkpoint.pop("__file__", None)
        record = checkpoint.get("meta", {}) if file is None else file.record
        self.file_classes = read_classes(record)
        source = "the checkpoint to resume from" if file is None else file.source
        exact = self._resumed is not None or self._heads == "exact"
        check_checkpoint_classes(source, self.file_classes, self._classes, exact=exact)
        if file is None:
            _require_all(own, checkpoint["model"])
            return super()._load_model(checkpoint)
        parts = _parts(model)
        found = fit_detector(own, parts, file, heads=self._heads)
        incompatible = super()._load_model({**checkpoint, "model": dict(found.values)})
        for level, line in found.after_start(parts).report():
            self.logger.log(level, line)
        return incompatible


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The detector's networks and stages of this package, by the prefixes of their tensors."""
    path = "backbone.bottom_up" if hasattr(model.backbone, "bottom_up") else "backbone"
    paths = [path]
    if isinstance(getattr(model, "roi_heads", None), GramRes5ROIHeads):
        paths.append("roi_heads.res5")
    return {f"{path}.": model.get_submodule(path) for path in paths}


def _require_all(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint restores every tensor; Detectron2 itself would accept fewer."""
    own = {name: value for name, value in own.items() if is_required(name)}
    saved = {n.removeprefix("module."): torch.as_tensor(v) for n, v in saved.items()}
    if not (matched := match(own, saved, finite=False)):
        what = "the checkpoint to resume from is of another model: it"
        raise WeightError(matched.complaint(what))
