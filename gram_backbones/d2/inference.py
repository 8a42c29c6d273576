"""A trained detector that maps images to instances, alike for both frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from torch import Tensor, nn

from ..pictures import Instances, complete_names
from .config import add_gram_backbones_config, merge_config
from .datasets import active_head
from .engine import GramPredictor


class Detector:
    """A trained detector that maps images to instances; `gram_backbones.mmdet.inference` is alike.

    Args:
        config: config file.
        weights: file of the whole detector.
        deploy: with norms folded in and fused operators, see `gram_backbones.fused`.

    Attributes:
        names: of the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the config has a key that does not exist.
        WeightError: the file is not read, or leaves a tensor unfilled.

    Examples:
        ::

            detector = Detector("output/mine/config.yaml", "output/mine/model_final.pth")
            (found,) = detector([image])
            print([detector.names[index] for index in found.classes])
    """

    def __init__(self, config: str, weights: str | Path, *, deploy: bool = True):
        cfg = get_cfg()
        add_gram_backbones_config(cfg)
        merge_config(cfg, config)
        cfg.MODEL.WEIGHTS, cfg.TEST.DEPLOY = str(weights), deploy
        self._predictor = GramPredictor(cfg)
        names = self._predictor.metadata.get("thing_classes") or ()
        head = active_head(cfg)
        self.names = complete_names(names, cfg.MODEL[head].NUM_CLASSES if head else len(names))

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """The instances of each image, with scores.

        Args:
            images: RGB, ``(H, W, 3)``, 8 bits; they may differ in size.
        """
        found = self._predictor.model([self._input(image) for image in images])
        return [_to_instances(item["instances"].to("cpu")) for item in found]

    @property
    def backbone(self) -> nn.Module:
        """The backbone, without a feature pyramid."""
        backbone: Any = self._predictor.model.backbone
        return getattr(backbone, "bottom_up", backbone)

    def backbone_input(self, image: np.ndarray) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the backbone gets of an image, prepared as for a prediction.

        Args:
            image: RGB, ``(H, W, 3)``, 8 bits.

        Returns:
            The normalised and padded image ``(1, 3, H', W')``, and its unpadded size.
        """
        model: Any = self._predictor.model
        images = model.preprocess_image([self._input(image)])
        return images.tensor, images.image_sizes

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        """As ``DefaultPredictor`` prepares one image."""
        if self._predictor.input_format == "BGR":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        resized = self._predictor.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}


def _to_instances(found: Any) -> Instances:
    """Detectron2's instances as ours."""
    masks = found.pred_masks if found.has("pred_masks") else None
    scores, classes = found.scores.tolist(), found.pred_classes.tolist()
    return Instances(found.pred_boxes.tensor, classes, scores, masks)
