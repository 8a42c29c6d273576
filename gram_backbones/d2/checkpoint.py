"""Checkpoints that fill the backbone, or stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..weight_files import WeightError, WeightFile, read_weight_file
from ..weights import Fit, fit, fit_detector_parts, network_tensors
from .roi_heads import GramRes5ROIHeads


class GramCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict about the backbone.

    - A file of a bare backbone fills the backbone and, in a C4 detector, the last stage in the RoI
      heads; its names may be of any kind that `gram_backbones.weights` recognises.
    - A detector's file fills everything. Class-dependent layers of another size are left alone, and
      named.
    - A resumed run restores everything that Detectron2 saved; that file is trusted.

    Detectron2's own class returns normally when nothing matched, and the backbone stays random.

    Raises:
        WeightError: the file is not read, or leaves a tensor unfilled; the message lists the names,
            and the model is left as it was.
    """

    _resumes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resume from the last checkpoint, or load ``path``."""
        self._resumes = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resumes = False

    def load(self, path: str, *args, **kwargs) -> dict:
        """As Detectron2's; addresses that our reader checks go to it as they are."""
        if path.startswith(("https://", "torchvision://")) and not self._resumes:
            checkpoint = self._load_file(path)
            self._load_model(checkpoint)
            return {}
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        if self._resumes:
            return super()._load_file(filename)
        file = read_weight_file(filename)
        return {"model": dict(file.tensors), "__source__": filename, "__file__": file}

    def _load_model(self, checkpoint: dict):
        source = checkpoint.pop("__source__", None)
        model = getattr(self.model, "module", self.model)
        if source is None:
            _require_all(model.state_dict(), checkpoint["model"])
            return super()._load_model(checkpoint)
        own = model.state_dict()
        homes = _homes(model)
        tensors = checkpoint["model"]
        found = _fit(model, own, homes, checkpoint.pop("__file__"))
        rest, resized = _other_parts(own, homes, tensors, source)
        state = {homes[name]: value for name, value in found.values.items()}
        checkpoint["model"] = {**rest, **state}
        incompatible = super()._load_model(checkpoint)
        found = replace(found, others=tuple(n for n in found.others if _bare(n) not in rest))
        for line in found.lines():
            self.logger.info(line)
        if rest:
            self.logger.info(f"loaded {len(rest)} tensors of neck and heads from {source}")
        if resized:
            names = ", ".join(resized)
            self.logger.warning(f"kept at their start, for another number of classes: {names}")
        return incompatible


def _homes(model: nn.Module) -> dict[str, str]:
    """For every tensor of the family's network, by the whole network's name, its place."""
    bottom_up = hasattr(model.backbone, "bottom_up")
    parts = {"backbone.bottom_up." if bottom_up else "backbone.": _backbone(model)}
    if isinstance(getattr(model, "roi_heads", None), GramRes5ROIHeads):
        parts["roi_heads.res5."] = model.roi_heads.res5
    return {
        whole: prefix + name
        for prefix, part in parts.items()
        for whole, name in network_tensors(part)[1].items()
    }


def _backbone(model: nn.Module) -> nn.Module:
    return getattr(model.backbone, "bottom_up", model.backbone)


def _fit(
    model: nn.Module, own: Mapping[str, Tensor], homes: Mapping[str, str], file: WeightFile
) -> Fit:
    network = {whole: own[place] for whole, place in homes.items()}
    variant, _ = network_tensors(_backbone(model))
    return fit(network, variant, file)


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _other_parts(
    own: Mapping[str, Tensor],
    homes: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    source: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """The neck's and heads' tensors, where the file is such a detector's; nothing otherwise."""
    tensors = {_bare(name): value for name, value in tensors.items()}
    places = set(homes.values())
    owed = {n: v for n, v in own.items() if n not in places and not n.endswith(_COMPUTED)}
    if not owed.keys() & tensors.keys():
        return {}, []
    return fit_detector_parts(owed, tensors, source)


# Buffers that the config gives, and counters.
_COMPUTED = ("pixel_mean", "pixel_std", "num_batches_tracked")


def _require_all(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """A resumed run restores every tensor; Detectron2 itself would go on with fewer."""
    saved = {_bare(name): value for name, value in saved.items()}
    bad = [
        name
        for name, value in own.items()
        if not name.endswith(_COMPUTED)
        and (name not in saved or tuple(saved[name].shape) != tuple(value.shape))
    ]
    if bad:
        raise WeightError(
            f"the checkpoint to resume from is of another model: {len(bad)} of {len(own)} tensors "
            f"are missing or of another shape, {', '.join(bad[:8])}"
        )
