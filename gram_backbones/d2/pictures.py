"""Pictures of an evaluation: predictions and ground truth side by side."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

_BANNER = 26  # pixels
_MIN_SIDE = 400  # pixels; smaller images are drawn larger, so that labels fit


def save_pictures(
    results_file: str,
    dataset_name: str,
    folder: str,
    *,
    limit: int = 32,
    score_thresh: float = 0.5,
    fallback: int = 3,
) -> int:
    """Draw predicted boxes and masks (left) next to the ground truth (right).

    Args:
        results_file: COCO results as Detectron2's evaluator writes them.
        dataset_name: registered data set of the results.
        folder: output folder, one PNG per image.
        limit: maximum number of images, from the beginning of the data set.
        score_thresh: minimum score of instances to draw.
        fallback: number of best instances to draw if none of an image reaches that score; the
            picture then says so.

    Returns:
        The number of pictures written.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # Data sets registered without this mapping already have contiguous ids.
    to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    predictions = defaultdict(list)
    with open(results_file) as file:
        for item in json.load(file):
            predictions[item["image_id"]].append(item)
    records = DatasetCatalog.get(dataset_name)[:limit]
    os.makedirs(folder, exist_ok=True)
    for record in records:
        image = read_image(record["file_name"], "RGB")
        ranked = sorted(predictions[record["image_id"]], key=lambda item: -item["score"])
        chosen = [item for item in ranked if item["score"] >= score_thresh]
        title = f"predicted, score >= {score_thresh:g}: {len(chosen)}"
        if not chosen and ranked:
            chosen = ranked[:fallback]
            title = f"none >= {score_thresh:g}; the {len(chosen)} best"
        instances = _to_instances(chosen, image.shape[:2], to_contiguous)
        predicted = _visualizer(image, metadata).draw_instance_predictions(instances).get_image()
        truth = _visualizer(image, metadata).draw_dataset_dict(record).get_image()
        crowds = sum(a.get("iscrowd", 0) for a in record.get("annotations", []))
        truth_title = f"truth: {len(record.get('annotations', [])) - crowds}"
        if crowds:
            truth_title += f" and {crowds} crowd"
        pair = np.hstack([_titled(predicted, title), _titled(truth, truth_title)])
        path = Path(folder) / f"{Path(record['file_name']).stem}.png"
        cv2.imwrite(str(path), pair[:, :, ::-1])
    return len(records)


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    # One colour per class, if the data set has colours, makes the two sides easier to compare.
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    scale = max(1.0, _MIN_SIDE / min(image.shape[:2]))
    return Visualizer(image, metadata, scale=scale, instance_mode=mode)


def _to_instances(items: list[dict], size: tuple[int, int], to_contiguous: dict) -> Instances:
    instances = Instances(size)
    boxes = [BoxMode.convert(item["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for item in items]
    instances.pred_boxes = Boxes(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    instances.scores = np.array([item["score"] for item in items])
    instances.pred_classes = np.array(
        [to_contiguous.get(item["category_id"], item["category_id"]) for item in items], dtype=int
    )
    if items and "segmentation" in items[0]:
        instances.pred_masks = [item["segmentation"] for item in items]
    return instances


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    image = np.ascontiguousarray(image)
    banner = np.full((_BANNER, image.shape[1], 3), 255, np.uint8)
    cv2.putText(banner, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([banner, image])
