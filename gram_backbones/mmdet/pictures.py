"""Pictures of an evaluation: predictions and ground truth side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from ..pictures import SCORE_THRESH, Instances, draw_pair


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draws the first images of every validation and test into ``work_dir/pictures``.

    Predictions are on the left, ground truth on the right, if the data set's pipeline loads it.

    Args:
        num: maximum number of images.
        score_thr: minimum score of instances to draw, see
            :func:`gram_backbones.pictures.draw_pair`.
    """

    def __init__(self, num: int = 32, score_thr: float = SCORE_THRESH):
        self.score_thr = score_thr
        self._num = num
        self._drawn = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Start again from the first image."""
        self._drawn = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Start again from the first image."""
        self._drawn = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw images of a batch until ``num`` are drawn."""
        self._draw(runner, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw images of a batch until ``num`` are drawn."""
        self._draw(runner, outputs)

    def _draw(self, runner: Runner, outputs: Sequence[DetDataSample]) -> None:
        if not is_main_process():
            return
        folder = Path(runner.work_dir) / "pictures"
        for sample in outputs[: self._num - self._drawn]:
            self._drawn += 1
            if "pred_instances" not in sample:
                continue
            sample = sample.cpu()
            image = mmcv.imfrombytes(get(sample.img_path), channel_order="rgb")
            predicted = to_instances(sample.pred_instances)
            truth = annotated(sample, sample.ori_shape)
            classes = (*predicted.classes, *(truth.classes if truth else ()))
            names = runner.visualizer.dataset_meta.get("classes")
            names = names or [f"class {i}" for i in range(max(classes, default=0) + 1)]
            pair = draw_pair(image, predicted, truth, names, self.score_thr)
            os.makedirs(folder, exist_ok=True)
            Image.fromarray(pair).save(folder / f"{Path(sample.img_path).stem}.png")


def annotated(sample: DetDataSample, shape: Sequence[int]) -> Instances | None:
    """The annotations of an image, COCO's crowds among them; None if masks are of another size.

    This happens if a pipeline resizes after it loads annotations. Drawing must not stop a run.

    Args:
        sample: from a pipeline.
        shape: height and width of the image that is drawn on.
    """
    if "gt_instances" not in sample:
        return None
    parts = [sample.gt_instances]
    if "ignored_instances" in sample and len(sample.ignored_instances):
        parts.append(sample.ignored_instances)  # COCO's crowds
    masks = [part.masks for part in parts if "masks" in part]
    if any((m.height, m.width) != tuple(shape[:2]) for m in masks):
        return None
    found = [to_instances(part) for part in parts]
    with_masks = [part.masks for part in found if part.masks is not None]
    return Instances(
        torch.cat([part.boxes for part in found]),
        [index for part in found for index in part.classes],
        masks=torch.cat(with_masks) if len(with_masks) == len(found) else None,
        crowds=[i > 0 for i, part in enumerate(found) for _ in part.classes],
    )


def to_instances(found: Any) -> Instances:
    """MMDetection's instances as ours; boxes may be tensors or mmdet's ``HorizontalBoxes``."""
    boxes = getattr(found.bboxes, "tensor", found.bboxes)
    masks = found.get("masks")
    if masks is not None and not isinstance(masks, torch.Tensor):
        masks = torch.from_numpy(masks.to_ndarray())
    masks = None if masks is None else masks.bool()
    scores = found.scores.tolist() if "scores" in found else None
    return Instances(boxes.reshape(-1, 4), found.labels.tolist(), scores, masks)
