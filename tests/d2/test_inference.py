"""Images to instances with Detectron2."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from gram_backbones.d2 import GramPredictor
from gram_backbones.d2.inference import Detector
from gram_backbones.fused import is_deployed
from tests.predictions import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_d2(tmp_path_factory.mktemp("d2"))


def test_a_batch_of_different_sizes_is_mapped_in_order(files):
    detector = Detector(*files, deploy=False)
    images = [
        np.random.default_rng(i).integers(0, 255, (h, w, 3), np.uint8)
        for i, (h, w) in enumerate(((64, 96), (80, 64)))
    ]
    together = detector(images)
    assert detector.names == tiny.CLASSES
    predictor = detector._predictor
    assert isinstance(predictor, GramPredictor) and not is_deployed(predictor.model)
    for image, found in zip(images, together):
        assert (
            found.masks.shape == (len(found), *image.shape[:2]) and found.masks.dtype == torch.bool
        )
        assert len(found) == len(found.scores) == len(found.boxes) > 0
    alone = predictor(images[0][:, :, ::-1])["instances"]  # takes BGR
    (found,) = detector(images[:1])
    assert torch.equal(found.boxes, alone.pred_boxes.tensor)
    assert found.scores == alone.scores.tolist()
    assert torch.equal(found.masks, alone.pred_masks)


def test_deployed_by_default(files):
    assert is_deployed(Detector(*files)._predictor.model)
