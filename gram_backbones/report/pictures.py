"""Images with predictions and truth, as JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..data import naming_picture
from ..pictures import Instances, draw_predictions, draw_truth
from .detections import Evaluation, corners

_SIDE = 480  # pixels, longest side of an image in the page


def draw_image(evaluation: Evaluation, image_id: int, root: str | Path) -> tuple[str, str]:
    """An image with its predictions, and with its truth, as ``data:`` addresses.

    Args:
        evaluation: of the image's data set.
        image_id: of the image.
        root: folder that the file names are relative to.

    Raises:
        PictureError: the picture cannot be read; the message names it.
    """
    path = Path(root, evaluation.files[image_id])
    with naming_picture(path), Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")  # as both frameworks read it
    size = image.size
    image.thumbnail((_SIDE, _SIDE))
    index = {category: i for i, category in enumerate(evaluation.category_ids)}
    results = evaluation.results.get(image_id, [])
    results = [item for item in results if item["category_id"] in index]
    truths = evaluation.truths[image_id]
    predicted = _to_instances(results, size, image.size, index)
    predicted.scores = [item["score"] for item in results]
    truth = _to_instances(truths, size, image.size, index)
    truth.crowds = [bool(item.get("iscrowd")) for item in truths]
    pixels = np.asarray(image)
    names, threshold = evaluation.classes, evaluation.threshold
    drawn = draw_predictions(pixels, predicted, names, threshold)
    return _as_address(drawn), _as_address(draw_truth(pixels, truth, names))


def _to_instances(
    items: Sequence[dict[str, Any]],
    size: tuple[int, int],
    shown: tuple[int, int],
    index: dict[int, int],
) -> Instances:
    """Instances of an image of ``size`` (width, height) in the scale of ``shown``."""
    scale = torch.tensor([shown[0] / size[0], shown[1] / size[1]] * 2)
    boxes = torch.tensor([corners(item) for item in items]).reshape(-1, 4) * scale
    masks = None
    if any(item.get("segmentation") for item in items):
        masks = torch.stack([_mask(item.get("segmentation"), size, shown) for item in items])
    return Instances(boxes, [index[item["category_id"]] for item in items], masks=masks)


def _mask(segmentation: Any, size: tuple[int, int], shown: tuple[int, int]) -> torch.Tensor:
    """A mask ``(H, W)`` from polygons or RLE; empty without any."""
    from pycocotools import mask as mask_api

    width, height = size
    if not segmentation:
        return torch.zeros(shown[::-1], dtype=torch.bool)
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, height, width)
    whole = Image.fromarray(255 * mask_api.decode(segmentation))
    return torch.from_numpy(np.asarray(whole.resize(shown)) > 127)


def _as_address(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
