"""Image sizes on their way to a DG-Net inside a detector that calls it with images alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .network import DGNet


class ImageSizes:
    """Adds ``valid_sizes`` to a backbone's next forward pass.

    A batch pads its images to one size, and frameworks hand the padded tensor alone to the
    backbone: the pooling of DG-Net's routers would see the padding. Other backbones run as ever.

    Attributes:
        sizes: per image, height and width of its unpadded part in pixels; used once. None where
            nothing is known.
    """

    def __init__(self, backbone: nn.Module):
        self.sizes: Sequence[tuple[int, int]] | None = None
        if isinstance(backbone, DGNet):
            backbone.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        sizes, self.sizes = self.sizes, None
        if sizes is not None and len(args) == 1 and len(sizes) == len(args[0]):
            kwargs = {"valid_sizes": sizes, **kwargs}
        return args, kwargs
