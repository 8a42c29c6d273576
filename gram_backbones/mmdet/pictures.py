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

    Ground truth is on the left where the data set's pipeline loads it, predictions on the right.

    Args:
        num: at most this many images.
        score_thr: instances with this score or more are drawn.
    """

    def __init__(self, num: int = 32, score_thr: float = 0.3):
        super().__init__(draw=True, score_thr=score_thr)
        self._num = num

    def before_run(self, runner: Runner) -> None:
        """Settle the folder; as an absolute path, which the stock hook joins without nesting."""
        self.test_out_dir = os.path.abspath(os.path.join(runner.work_dir, "pictures"))

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin with the first image again."""
        self._test_index = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin with the first image again."""
        self._test_index = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw as after a test."""
        self.after_test_iter(runner, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw what is still wanted of a batch."""
        if is_main_process() and self._test_index < self._num:
            wanted = [_drawable(sample) for sample in outputs[: self._num - self._test_index]]
            super().after_test_iter(runner, batch_idx, data_batch, wanted)


def _drawable(sample: DetDataSample) -> DetDataSample:
    """The sample without a ground truth of another size than the image's.

    A pipeline that resizes after loading annotations has one, and a picture must not end a run.
    """
    masks = sample.gt_instances.get("masks") if "gt_instances" in sample else None
    if masks is None or (masks.height, masks.width) == tuple(sample.ori_shape[:2]):
        return sample
    sample = sample.clone()
    del sample.gt_instances
    return sample
