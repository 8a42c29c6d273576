"""Images to instances with MMDetection."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmdet.apis import inference_detector

from gram_backbones.fused import is_deployed
from gram_backbones.mmdet.inference import Detector
from tests.predictions import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_mmdet(tmp_path_factory.mktemp("mmdet"))


def test_a_batch_of_different_sizes_is_mapped_in_order(files):
    detector = Detector(*files, deploy=False)
    images = [
        np.random.default_rng(i).integers(0, 255, (h, w, 3), np.uint8)
        for i, (h, w) in enumerate(((64, 96), (80, 64)))
    ]
    together = detector(images)
    assert detector.names == tiny.CLASSES and not is_deployed(detector._model)
    for image, found in zip(images, together):
        assert (
            found.masks.shape == (len(found), *image.shape[:2]) and found.masks.dtype == torch.bool
        )
        assert len(found) == len(found.scores) == len(found.boxes) > 0
    alone = inference_detector(detector._model, images[0][:, :, ::-1].copy()).pred_instances
    (found,) = detector(images[:1])
    assert torch.equal(found.boxes, alone.bboxes)
    assert found.scores == alone.scores.tolist()
    assert torch.equal(found.masks, alone.masks)


@pytest.mark.slow
def test_deployed_by_default(files):
    assert is_deployed(Detector(*files)._model)
