"""Detectors filled as strictly as for an evaluation, alone or mapping images to instances."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.utils import get_test_pipeline_cfg
from mmdet.visualization import get_palette
from mmengine.config import Config
from torch import Tensor, nn

from ..fused import deploy as deploy_model
from ..pictures import Instances, complete_names
from ..weights.detector import fit_detector
from ..weights.files import read_weight_file
from .own_data import head_numbers
from .pictures import to_instances
from .runs import own_parts

logger = logging.getLogger(__name__)


def load_detector(config: str | Config, weights: str | Path, *, deploy: bool = False) -> nn.Module:
    """A detector on the first GPU, or on the CPU, with all its weights from a file.

    Args:
        config: config file, or its content.
        weights: file of the whole detector; only its tensors and class names are read. Where it
            has no names, classes are named as in the config's test data set.
        deploy: with norms folded in and fused operators, see `gram_backbones.fused`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: the file is not read, or leaves a tensor unfilled.
    """
    cfg = Config.fromfile(config) if isinstance(config, str) else config
    file = read_weight_file(weights)
    with warnings.catch_warnings(record=True):  # of no file and no classes: both follow here
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        model = init_detector(cfg, None, device=device)
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True})
    model.dataset_meta = dict(dataset.metainfo)
    if file.classes and list(model.dataset_meta.get("classes") or ()) != file.classes:
        palette = get_palette("random", len(file.classes))
        model.dataset_meta.update(classes=tuple(file.classes), palette=palette)
    found = fit_detector(model.state_dict(), own_parts(model), file, heads="exact")
    model.load_state_dict(found.values, strict=False)
    for level, line in found.report():
        logger.log(level, line)
    return deploy_model(model) if deploy else model


class Detector:
    """A trained detector that maps images to instances; `gram_backbones.d2.inference` is alike.

    Args:
        config: config file.
        weights: file of the whole detector.
        deploy: with norms folded in and fused operators, see `gram_backbones.fused`.

    Attributes:
        names: of the classes.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: the file is not read, or leaves a tensor unfilled.

    Examples:
        ::

            detector = Detector("my_config.py", "work_dirs/my_config/epoch_12.pth")
            (found,) = detector([image])
            print([detector.names[index] for index in found.classes])
    """

    def __init__(self, config: str, weights: str | Path, *, deploy: bool = True):
        model: Any = load_detector(config, weights, deploy=deploy)
        self._model = model
        steps = copy.deepcopy(get_test_pipeline_cfg(model.cfg))
        steps[0].type = "mmdet.LoadImageFromNDArray"  # as inference_detector does
        self._pipeline = Compose(steps)
        names = model.dataset_meta.get("classes") or ()
        number = max(head_numbers(model).values(), default=len(names))
        self.names = complete_names(names, number)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """The instances of each image, with scores.

        Args:
            images: RGB, ``(H, W, 3)``, 8 bits; they may differ in size.
        """
        found = self._model.test_step(self._batch(images))
        return [to_instances(sample.cpu().pred_instances) for sample in found]

    @property
    def backbone(self) -> nn.Module:
        """The backbone, without a neck."""
        return self._model.backbone

    def backbone_input(self, image: np.ndarray) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the backbone gets of an image, prepared as for a prediction.

        Args:
            image: RGB, ``(H, W, 3)``, 8 bits.

        Returns:
            The normalised and padded image ``(1, 3, H', W')``, and its unpadded size.
        """
        batch = self._model.data_preprocessor(self._batch([image]))
        return batch["inputs"], [sample.img_shape[:2] for sample in batch["data_samples"]]

    def _batch(self, images: Sequence[np.ndarray]) -> dict[str, list]:
        bgr = [np.ascontiguousarray(image[:, :, ::-1]) for image in images]
        samples = [self._pipeline(dict(img=image, img_id=0)) for image in bgr]
        return {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}
