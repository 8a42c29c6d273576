"""Pictures of an evaluation: predictions and ground truth side by side."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask
from PIL import Image

from ..pictures import SCORE_THRESH, Instances, draw_pair

logger = logging.getLogger(__name__)


def save_pictures(
    results_file: str,
    dataset_name: str,
    folder: str,
    *,
    limit: int = 32,
    score_thresh: float = SCORE_THRESH,
) -> int:
    """Draw predicted boxes and masks (left) next to the ground truth (right).

    Args:
        results_file: COCO results as Detectron2's evaluator writes them.
        dataset_name: registered data set of the results.
        folder: output folder, one PNG per image.
        limit: maximum number of images, from the beginning of the data set.
        score_thresh: minimum score of instances to draw, see
            :func:`gram_backbones.pictures.draw_pair`.

    Returns:
        The number of pictures written.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # Data sets registered without this mapping already have contiguous ids.
    to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    predictions = defaultdict(list)
    with open(results_file) as file:
        for item in json.load(file):
            index = to_contiguous.get(item["category_id"], item["category_id"])
            item = {**item, "category_id": index, "bbox_mode": BoxMode.XYWH_ABS}
            predictions[item["image_id"]].append(item)
    records = DatasetCatalog.get(dataset_name)[:limit]
    os.makedirs(folder, exist_ok=True)
    for number, record in enumerate(records, 1):
        image = read_image(record["file_name"], "RGB")
        found = predictions[record["image_id"]]
        predicted = _to_instances(found, image.shape[:2])
        predicted.scores = [item["score"] for item in found]
        annotations = record.get("annotations", [])
        truth = _to_instances(annotations, image.shape[:2])
        truth.crowds = [bool(item.get("iscrowd", 0)) for item in annotations]
        pair = draw_pair(image, predicted, truth, metadata.thing_classes, score_thresh)
        Image.fromarray(pair).save(Path(folder) / f"{Path(record['file_name']).stem}.png")
        if number % 10 == 0:  # a busy machine takes a second for each
            logger.info("Drew %d of %d pictures", number, len(records))
    return len(records)


def _to_instances(items: list[dict[str, Any]], size: tuple[int, int]) -> Instances:
    boxes = [BoxMode.convert(i["bbox"], i["bbox_mode"], BoxMode.XYXY_ABS) for i in items]
    masks = None
    if any("segmentation" in item for item in items):
        # An annotation without a mask has an empty one.
        empty: list[list[float]] = []
        all_masks = [GenericMask(i.get("segmentation", empty), *size).mask for i in items]
        masks = torch.from_numpy(np.stack(all_masks)).bool()
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        [item["category_id"] for item in items],
        masks=masks,
    )
