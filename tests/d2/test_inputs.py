"""What a detector says that its backbone gets is what the backbone gets in a prediction."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.modeling import build_model

from gram_backbones import cli
from gram_backbones.d2.inference import Detector
from tests.d2.test_dgnet import small_config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A config and weights of a small detector."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = small_config("mask_rcnn_dgnet_r50_fpn_1x")
    cfg.DATASETS.TEST = ()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 70, 200
    torch.save({"model": build_model(cfg).state_dict()}, folder / "w.pth")
    (folder / "c.yaml").write_text(cfg.dump())
    return str(folder / "c.yaml"), str(folder / "w.pth")


def test_the_backbone_s_input_is_that_of_a_prediction(files):
    detector, seen = Detector(*files, deploy=False), []
    detector.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs["valid_sizes"])), with_kwargs=True
    )
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    detector([picture])
    image, sizes = detector.backbone_input(picture)
    assert (image == seen[0][0]).all() and image.shape == (1, 3, 96, 128)
    assert [tuple(size) for size in sizes] == [tuple(size) for size in seen[0][1]] == [(70, 126)]


@pytest.mark.slow
def test_connectivity_of_a_detector_s_backbone(files, tmp_path):
    Image.new("RGB", (90, 50), "red").save(tmp_path / "red.png")
    config, weights = files
    cli.main(["connectivity", str(tmp_path / "red.png"), "--config", config, "--weights", weights,
              "--output", str(tmp_path / "out"), "--graphs", "0"])  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out/images.csv").open()))
    assert [row["blocks"] for row in rows] == ["8"]
