"""R-CNN that tells its backbone which part of each padded image is real."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList
from torch import nn

from ..dgnet import DGNet


@META_ARCH_REGISTRY.register()
class GramGeneralizedRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that passes image sizes to a DG-Net as ``valid_sizes``.

    A batch pads its images to one size, and Detectron2 hands the padded tensor alone to the
    backbone; the routers' pooling would see the padding. Other backbones run as ever.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._image_sizes: list[tuple[int, int]] | None = None
        bottom_up = getattr(self.backbone, "bottom_up", self.backbone)
        if isinstance(bottom_up, DGNet):
            # FPN calls its bottom-up network with the tensor alone: the sizes join on the way.
            bottom_up.register_forward_pre_hook(self._add_valid_sizes, with_kwargs=True)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Detectron2's, remembering the sizes for the backbone's forward pass that follows."""
        images = super().preprocess_image(batched_inputs)
        self._image_sizes = list(images.image_sizes)
        return images

    def _add_valid_sizes(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        sizes, self._image_sizes = self._image_sizes, None
        if sizes is not None and len(args) == 1 and len(sizes) == len(args[0]):
            kwargs = {"valid_sizes": sizes, **kwargs}
        return args, kwargs
