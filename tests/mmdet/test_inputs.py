"""What a detector says that its backbone gets is what the backbone gets in a prediction."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmdet.registry import MODELS
from mmengine.config import Config

from gram_backbones.mmdet.inference import Detector
from tests.mmdet.test_backbones import CONFIGS, SMALL_DGNET


@pytest.mark.slow
def test_the_backbone_s_input_is_that_of_a_prediction(tmp_path):
    cfg = Config.fromfile(CONFIGS / "faster_rcnn/faster-rcnn_dgnet-r50_fpn_1x_coco.py")
    cfg.merge_from_dict(SMALL_DGNET)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (200, 70)
    cfg.dump(tmp_path / "c.py")
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, tmp_path / "w.pth")
    detector = Detector(str(tmp_path / "c.py"), tmp_path / "w.pth", deploy=False)
    seen = []
    detector.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs["valid_sizes"])), with_kwargs=True
    )
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    detector([picture])
    image, sizes = detector.backbone_input(picture)
    assert (image == seen[0][0]).all() and image.shape == (1, 3, 96, 128)
    assert sizes == seen[0][1] == [(70, 126)]
