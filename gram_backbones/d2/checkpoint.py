"""Checkpoints that fill the backbone, or stop."""

from __future__ import annotations

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..weights import check_filled
from .roi_heads import GramRes5ROIHeads


class GramCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict about the backbone.

    A file of a whole detector (names begin with ``backbone.``) is loaded as Detectron2 does. A file
    of a bare backbone (names begin with ``stem.``, ``res2.`` …, as ``AOGNet.state_dict()`` gives
    them) fills the backbone and, in a C4 detector, the last stage in the RoI heads.

    Detectron2's own class returns normally when nothing matched, and the backbone stays random.

    Raises:
        ValueError: the file leaves a tensor of the backbone or of the C4 stage unfilled, or has it
            in another shape. The message lists the names, and the model is left as it was.
    """

    def _load_file(self, filename: str):
        if filename.endswith(".pkl"):
            # Detectron2 unpickles these without restriction, and its ResNets (BGR, stride in the
            # first 1 × 1) fit other networks by shape only.
            raise ValueError(f"{filename}: .pkl files are not read; convert it to .pth tensors")
        return super()._load_file(filename)

    def _load_model(self, checkpoint):
        model = getattr(self.model, "module", self.model)
        prefixes = _backbone_prefixes(model)
        state = {name.removeprefix("module."): v for name, v in checkpoint["model"].items()}
        if not any(name.startswith("backbone.") for name in state):
            state = _place(state, model.state_dict(), prefixes)
        checkpoint["model"] = state
        own = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)}
        count = len(check_filled(own, state))
        incompatible = super()._load_model(checkpoint)
        self.logger.info(f"loaded {count} of {count} backbone tensors")
        return incompatible


def _backbone_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Where the family's stages stand in a detector's state dict."""
    backbone = "backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."
    if isinstance(getattr(model, "roi_heads", None), GramRes5ROIHeads):
        return backbone, "roi_heads.res5."
    return (backbone,)


def _place(
    state: dict[str, Tensor], model: dict[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    """A bare backbone's tensors under the names that they have in a detector."""
    placed = {}
    for name, value in state.items():
        # AOGNet's last stage is the head's res5 itself, DG-Net's stands inside it.
        homes = [f"roi_heads.{name}", f"roi_heads.res5.{name}"] if len(prefixes) > 1 else []
        placed[next((home for home in homes if home in model), prefixes[0] + name)] = value
    return placed
