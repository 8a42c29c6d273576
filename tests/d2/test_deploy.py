"""Deployed detectors in Detectron2 find what the trained ones find."""

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model

import gram_backbones.d2 as gram
from gram_backbones.fused import FusedConv, deploy, is_deployed
from tests.d2 import test_backbones, test_dgnet
from tests.test_fused import filled

DETECTORS = (
    "mask_rcnn_aognet12m_fpn_1x",
    "mask_rcnn_aognet12m_c4_1x",
    "mask_rcnn_dgnet_r50_fpn_1x",
    "mask_rcnn_dgnet_r50_c4_1x",
)


def small_config(name):
    family = test_backbones if "aognet" in name else test_dgnet
    cfg = family.small_config(name)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return cfg


@pytest.mark.grid
@pytest.mark.parametrize("name", DETECTORS)
def test_a_deployed_detector_finds_the_same(name):
    model = filled(build_model(small_config(name))).eval()
    images = [torch.randint(0, 255, (3, h, w)) for h, w in ((96, 128), (64, 96))]
    inputs = [{"image": image.float()} for image in images]
    fast = deploy(model)
    with torch.no_grad():
        pixels = model.preprocess_image(inputs).tensor
        for got, wanted in zip(fast.backbone(pixels).values(), model.backbone(pixels).values()):
            assert (got - wanted).norm() < 1e-4 * wanted.norm()  # 255 times an image of noise
        found, expected = fast(inputs), model(inputs)
    for got, wanted in zip(found, expected):
        got, wanted = got["instances"], wanted["instances"]
        assert len(got) == len(wanted) > 0
        torch.testing.assert_close(got.scores, wanted.scores, rtol=1e-3, atol=1e-4)
    last = getattr(getattr(fast, "roi_heads", None), "res5", None)
    assert last is None or any(type(m) is FusedConv for m in last.modules())


@pytest.mark.slow
def test_the_switch_reaches_predictor_and_evaluation(tmp_path):
    cfg = small_config("mask_rcnn_aognet12m_fpn_1x")
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.DATASETS.TEST = ()
    assert not is_deployed(gram.GramPredictor(cfg).model)
    cfg.TEST.DEPLOY = True
    predictor = gram.GramPredictor(cfg)
    assert is_deployed(predictor.model)
    assert "instances" in predictor(np.zeros((64, 96, 3), np.uint8))


def test_an_evaluation_in_a_training_leaves_the_trained_model(monkeypatch):
    cfg = small_config("mask_rcnn_aognet12m_fpn_1x")
    cfg.TEST.DEPLOY = True
    seen = []
    monkeypatch.setattr(
        "detectron2.engine.DefaultTrainer.test", lambda cfg, model, evaluators: seen.append(model)
    )
    model = build_model(cfg).train()
    gram.GramTrainer.test(cfg, model, [DatasetEvaluator()])
    assert is_deployed(seen[0]) and not is_deployed(model) and model.training
