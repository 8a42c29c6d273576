"""Detectors for MMDetection's ``inference_detector``, filled as strictly as for an evaluation."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.visualization import get_palette
from mmengine.config import Config
from torch import nn

from ..fused import deploy as deploy_model
from ..weights.detector import fit_detector
from ..weights.files import read_weight_file
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
