"""R-CNN that tells its backbone which part of each padded image is real."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList

from ..dgnet.image_sizes import ImageSizes


@META_ARCH_REGISTRY.register()
class GramGeneralizedRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that passes image sizes to a DG-Net as ``valid_sizes``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # FPN calls its bottom-up network with the tensor alone: the sizes join on the way.
        has_fpn = hasattr(self.backbone, "bottom_up")
        self._image_sizes = ImageSizes(self.backbone.bottom_up if has_fpn else self.backbone)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Detectron2's, remembering the sizes for the backbone's forward pass that follows."""
        images = super().preprocess_image(batched_inputs)
        self._image_sizes.sizes = list(images.image_sizes)
        return images
