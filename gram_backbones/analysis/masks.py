"""Pictures of a COCO-format data set with the masks of its categories, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

try:
    from pycocotools.coco import COCO
except ImportError as error:
    raise ImportError(
        f"masks need pycocotools, which cannot be imported ({error}): "
        "pip install gram-backbones[analysis]"
    ) from error

from ..data import DataError, Dataset, PictureError, read_picture
from ..preprocessing import Preprocessing
from .pictures import coco_pictures, normalised, resized


class MaskedPictures:
    """The pictures of a data set as a network's inputs, each with the masks of all categories.

    A category's mask is the union of its annotations, crowd regions included.

    Args:
        dataset: with masks.
        size: pixels of the shorter side to which pictures are resized whole.
        preprocessing: of the network.
        device: of what it gives.

    Raises:
        DataError: the data set has no masks or no pictures.
        FileNotFoundError: a picture does not exist.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        preprocessing: Preprocessing,
        device: str | torch.device = "cpu",
    ):
        if not dataset.has_masks:
            raise DataError(f"data set {dataset.name} has no masks; dissection needs them")
        self.paths = [picture.path for picture in coco_pictures(dataset)]
        with redirect_stdout(StringIO()):  # it prints what it does
            self._coco = COCO(dataset.json_file)
        self._ids = [image["id"] for image in self._coco.dataset["images"]]
        self._index = {category: i for i, category in enumerate(dataset.category_ids)}
        self.size, self.preprocessing, self.device = size, preprocessing, device

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs ``(1, 3, H, W)`` and masks ``(categories, H / 2, W / 2)``, boolean.

        Bau et al. compare at half the size of the input, too: at 112 pixels of 224.
        """
        for index in range(len(self)):
            picture = self.picture(index)
            halves = (-(-picture.height // 2), -(-picture.width // 2))
            yield self.as_input(picture), self.masks(index, halves)

    def picture(self, index: int) -> Image.Image:
        """A picture, resized.

        Raises:
            PictureError: it cannot be read, or has another size than annotated.
        """
        picture = Image.fromarray(read_picture(self.paths[index]))
        record = self._coco.imgs[self._ids[index]]
        if picture.size != (size := (record["width"], record["height"])):
            raise PictureError(
                f"{self.paths[index]} has {picture.width}×{picture.height} pixels; it is annotated "
                f"with {size[0]}×{size[1]}"
            )
        return resized(picture, self.size)

    def as_input(self, picture: Image.Image) -> Tensor:
        """A picture as the network's input ``(1, 3, H, W)``."""
        return normalised(picture, self.preprocessing).to(self.device)

    def masks(self, index: int, size: tuple[int, int]) -> Tensor:
        """The masks of all categories ``(categories, H, W)``, boolean.

        Args:
            index: of the picture.
            size: H and W.

        Raises:
            PictureError: a mask cannot be decoded.
        """
        record = self._coco.imgs[self._ids[index]]
        whole = np.zeros((len(self._index), record["height"], record["width"]), np.uint8)
        for annotation in self._coco.imgToAnns[self._ids[index]]:
            if annotation.get("segmentation"):
                whole[self._index[annotation["category_id"]]] |= self._decoded(index, annotation)
        masks = F.interpolate(torch.from_numpy(whole)[None], size, mode="nearest-exact")[0]
        return masks.bool().to(self.device)

    def _decoded(self, index: int, annotation: dict) -> np.ndarray:
        try:
            return self._coco.annToMask(annotation)
        except Exception as error:  # pycocotools raises whatever it stumbles over
            raise PictureError(
                f"{self.paths[index]}: the mask of annotation {annotation.get('id')} cannot "
                f"be decoded ({error}); gram-backbones check-data lists all errors"
            ) from error
