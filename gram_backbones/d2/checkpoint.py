"""Checkpoints that fill the backbone, or stop."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..weight_files import WeightError, WeightFile, read_weight_file
from ..weights import Fit, fit, network_tensors
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
            return checkpoint
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        if self._resumes:
            return super()._load_file(filename)
        return {"model": dict(read_weight_file(filename).tensors), "__source__": filename}

    def _load_model(self, checkpoint: dict):
        source = checkpoint.pop("__source__", None)
        if source is None:
            return super()._load_model(checkpoint)
        model = getattr(self.model, "module", self.model)
        own = model.state_dict()
        homes = _homes(model)
        found = _fit(model, own, homes, source, checkpoint["model"])
        state = {homes[name]: value for name, value in found.values.items()}
        rest = _other_parts(own, homes, checkpoint["model"], source)
        checkpoint["model"] = {**rest, **state}
        incompatible = super()._load_model(checkpoint)
        for line in found.lines() if not rest else found.lines()[:1]:
            self.logger.info(line)
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
    model: nn.Module,
    own: Mapping[str, Tensor],
    homes: Mapping[str, str],
    source: str,
    tensors: Mapping[str, Tensor],
) -> Fit:
    network = {whole: own[place] for whole, place in homes.items()}
    variant, _ = network_tensors(_backbone(model))
    return fit(network, variant, WeightFile(source, tensors))


def _other_parts(
    own: Mapping[str, Tensor],
    homes: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    source: str,
) -> dict[str, Tensor]:
    """The heads' tensors, where the file is such a detector's; nothing otherwise.

    Raises:
        WeightError: it has some of them, but not all.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    places = set(homes.values())
    heads = [name for name in own if name not in places]
    rest = {name: tensors[name] for name in heads if name in tensors}
    missing = [n for n in heads if n not in rest and not n.endswith(_COMPUTED)]
    if rest and missing:
        raise WeightError(
            f"{source} is a detector's, and fills {len(rest)} of {len(heads)} tensors of this "
            f"detector's other parts; missing: {', '.join(missing[:8])}"
        )
    return rest


# Buffers that the config gives, and counters.
_COMPUTED = ("pixel_mean", "pixel_std", "num_batches_tracked")
