"""R-CNN that passes the unpadded image sizes to its backbone."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList

from ..dgnet.image_sizes import ImageSizes


@META_ARCH_REGISTRY.register()
class GramGeneralizedRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that passes image sizes to a DG-Net as ``valid_sizes``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # FPN passes only the tensor to its bottom-up network, so the sizes are added in between.
        has_fpn = hasattr(self.backbone, "bottom_up")
        self._image_sizes = ImageSizes(self.backbone.bottom_up if has_fpn else self.backbone)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Like Detectron2's, and store the sizes for the backbone's next forward pass."""
        images = super().preprocess_image(batched_inputs)
        self._image_sizes.sizes = list(images.image_sizes)
        return images
