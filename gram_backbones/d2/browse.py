"""What Detectron2's training loader feeds a network, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from torch import Tensor

from ..data import Dataset
from ..pictures import Instances
from .datasets import as_coco
from .engine import GramTrainer


def datasets_of(cfg: CfgNode) -> list[Dataset]:
    """The data sets for training and evaluation that are COCO JSON."""
    return [*filter(None, map(as_coco, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))]


def iterate_samples(
    cfg: CfgNode, seed: int
) -> Iterator[tuple[str, np.ndarray, Instances, Sequence[str]]]:
    """Augmented samples of the training loader, one at a time, in the order of a training.

    Args:
        cfg: names registered data sets.
        seed: of the order and the augmentation.

    Yields:
        Path of the image; the augmented image, RGB ``(H, W, 3)``; its instances, without crowds,
        which the loader leaves out; and the names of the classes.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    for batch in GramTrainer.build_train_loader(cfg):
        for sample in batch:
            image = sample["image"].permute(1, 2, 0).numpy()
            if cfg.INPUT.FORMAT == "BGR":
                image = image[:, :, ::-1]
            found = _to_instances(sample["instances"])
            yield sample["file_name"], np.ascontiguousarray(image), found, names


def _to_instances(found: Any) -> Instances:
    masks = found.gt_masks if found.has("gt_masks") else None
    return Instances(
        found.gt_boxes.tensor,
        found.gt_classes.tolist(),
        masks=None if masks is None else _to_bitmasks(masks, found.image_size),
    )


def _to_bitmasks(masks: Any, size: tuple[int, int]) -> Tensor:
    if not isinstance(masks, PolygonMasks):
        return masks.tensor
    drawn = [polygons_to_bitmask(polygons, *size) for polygons in masks.polygons]
    return torch.from_numpy(np.array(drawn, bool).reshape(-1, *size))
