"""Detectors that pass the unpadded image sizes to a DG-Net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.models.detectors import ATSS, BaseDetector, FasterRCNN, MaskRCNN
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import Tensor

from ..dgnet.image_sizes import ImageSizes
from .channels import fill_channels


class ValidSizesMixin(BaseDetector):
    """Mixin to put before any detector of MMDetection; passes ``img_shape`` as ``valid_sizes``.

    For a detector that is not in this module::

        @MODELS.register_module()
        class MyDetector(ValidSizesMixin, TOOD):
            pass

    ``in_channels="auto"`` of necks and heads is filled, see `gram_backbones.mmdet.channels`.

    Backbones other than DG-Net run as usual. ``loss``, ``predict`` and the tensor mode pass image
    sizes. ``extract_feat`` alone, which some semi-supervised detectors call for their teacher, has
    no sizes, so routers then pool the whole padded images.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **fill_channels(kwargs))
        self._image_sizes = ImageSizes(self.backbone)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Any, *args, **kwargs) -> dict:
        """The detector's, with image sizes."""
        with self._sizes_of(batch_data_samples):
            return super().loss(batch_inputs, batch_data_samples, *args, **kwargs)

    def predict(self, batch_inputs: Tensor, batch_data_samples: Any, *args, **kwargs) -> list:
        """The detector's, with image sizes."""
        with self._sizes_of(batch_data_samples):
            return super().predict(batch_inputs, batch_data_samples, *args, **kwargs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None, *args, **kwargs):
        with self._sizes_of(batch_data_samples):
            return super()._forward(batch_inputs, batch_data_samples, *args, **kwargs)

    @contextmanager
    def _sizes_of(self, samples: Sequence[DetDataSample] | None) -> Iterator[None]:
        shapes = [sample.metainfo.get("img_shape") for sample in samples or ()]
        if shapes and None not in shapes:
            self._image_sizes.sizes = [tuple(shape[:2]) for shape in shapes]
        try:
            yield
        finally:
            self._image_sizes.sizes = None


@MODELS.register_module()
class GramFasterRCNN(ValidSizesMixin, FasterRCNN):
    """``FasterRCNN`` that passes image sizes to a DG-Net."""


@MODELS.register_module()
class GramMaskRCNN(ValidSizesMixin, MaskRCNN):
    """``MaskRCNN`` that passes image sizes to a DG-Net."""


@MODELS.register_module()
class GramATSS(ValidSizesMixin, ATSS):
    """``ATSS`` that passes image sizes to a DG-Net."""
