"""Pictures of an evaluation: ground truth and predictions side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import is_main_process
from mmengine.runner import Runner


@HOOKS.register_module()
class PicturesHook(DetVisualizationHook):
    """Draws the first images of every validation and test into ``work_dir/pictures``.

    Predictions are on the right. Ground truth is on the left, if the data set's pipeline loads it.

    Args:
        num: maximum number of images.
        score_thr: minimum score of instances to draw.
    """

    def __init__(self, num: int = 32, score_thr: float = 0.3):
        super().__init__(draw=True, score_thr=score_thr)
        self._num = num

    def before_run(self, runner: Runner) -> None:
        """Set the folder, as an absolute path, which MMDetection's hook does not nest."""
        self.test_out_dir = os.path.abspath(os.path.join(runner.work_dir, "pictures"))

    def before_val_epoch(self, runner: Runner) -> None:
        """Start again from the first image."""
        self._test_index = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Start again from the first image."""
        self._test_index = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw as in a test."""
        self.after_test_iter(runner, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw images of a batch until ``num`` are drawn."""
        if is_main_process() and self._test_index < self._num:
            wanted = [_drawable(sample) for sample in outputs[: self._num - self._test_index]]
            super().after_test_iter(runner, batch_idx, data_batch, wanted)


def _drawable(sample: DetDataSample) -> DetDataSample:
    """The sample without a ground truth of another size than the image's.

    This happens if a pipeline resizes after it loads annotations. Drawing must not stop a run.
    """
    masks = sample.gt_instances.get("masks") if "gt_instances" in sample else None
    if masks is None or (masks.height, masks.width) == tuple(sample.ori_shape[:2]):
        return sample
    sample = sample.clone()
    del sample.gt_instances
    return sample
