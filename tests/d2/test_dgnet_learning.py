"""A detector on a DG-Net, trained from scratch for minutes, evaluates as it was trained."""

import json

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import gram_backbones.d2 as gram
from gram_backbones.d2.demo_dataset import make_demo_dataset
from tests.conftest import check_ended_well
from tests.d2.test_engine import run_tool

SHORT = (
    "SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 240 SOLVER.STEPS (180,220) SOLVER.BASE_LR 0.02 "
    "SOLVER.CHECKPOINT_PERIOD 1000 TEST.PICTURES.NUM 0"
).split()


def held_out_loss(model, batches, *, evaluating):
    """Mean loss; ``evaluating``, the backbone's norms and edges are those of inference."""
    model.train()
    model.backbone.train(not evaluating)
    torch.manual_seed(0)
    with torch.no_grad(), EventStorage():
        return sum(sum(model(batch).values()).item() for batch in batches) / len(batches)


@pytest.mark.slow
def test_a_detector_from_scratch_evaluates_as_it_was_trained(tmp_path):
    files = make_demo_dataset(tmp_path / "gram_demo", train=240, val=40, seed=0)
    config = "d2_configs/demo_mask_rcnn_dgnet_r18_fpn.yaml"
    out = tmp_path / "out"
    done = run_tool("--config", config, *SHORT, "OUTPUT_DIR", out, datasets=tmp_path)
    check_ended_well(done)
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    ap50 = max(line["bbox/AP50"] for line in lines if "bbox/AP50" in line)
    cfg = gram.get_config("demo_mask_rcnn_dgnet_r18_fpn")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(out / "model_final.pth"))
    images = load_coco_json(files["val"], str(tmp_path / "gram_demo/val"))
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[], use_instance_mask=True)
    batches = list(build_detection_test_loader(images, mapper=mapper, batch_size=8))
    evaluated = held_out_loss(model, batches, evaluating=True)  # before training moves statistics
    trained = held_out_loss(model, batches, evaluating=False)
    print(losses[::3], ap50, trained, evaluated)  # shown where the test fails
    assert losses[-1] < 0.75 * losses[0]
    assert evaluated < 1.1 * trained
    assert ap50 > 20
