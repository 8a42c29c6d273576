"""Every shipped Detectron2 config on a photograph: a training step and a prediction."""

import cv2
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

import gram_backbones.d2 as gram
from gram_backbones.config_folders import list_configs
from gram_backbones.d2.config import check_values
from tests.conftest import DATASETS, needs_coco
from tests.d2.test_backbones import LEAVES

# One per family and head; the others run with tools/test.sh --all.
QUICK = (
    "mask_rcnn_aognet12m_fpn_1x",
    "faster_rcnn_aognet12m_c4_1x",
    "mask_rcnn_dgnet_r50_fpn_1x",
)
STEPS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEAVES]


def small(name):
    """The config on the CPU with 16 regions and 30 proposals, short side at most 128."""
    cfg = gram.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (128,), 128
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 192
    return cfg


def photograph(cfg):
    coco = DATASETS / "coco"
    file = coco / "annotations/instances_val2017.json"
    records = load_coco_json(str(file), str(coco / "val2017"))
    record = next(r for r in records if r["annotations"])
    for annotation in record["annotations"]:  # the demo has four classes
        annotation["category_id"] %= cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return DatasetMapper(cfg, is_train=True)(record)


@pytest.mark.grid
@needs_coco
@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_and_a_prediction_on_a_photograph(name):
    cfg = small(name)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    sample = photograph(cfg)
    parameters = dict(model.named_parameters())
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with EventStorage():
        losses = model([sample])
    assert losses and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trainable = {n for n, p in parameters.items() if p.requires_grad}
    assert not [n for n in trainable if parameters[n].grad is None]
    optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(before[n], v)}
    # From scratch the last norm of every T starts at 0, and what is before it at a standstill.
    share = 0.5 if name.startswith("demo") else 0.9
    statistics = {n for n in moved if "running_" in n or n.endswith("num_batches_tracked")}
    assert not statistics or name.startswith("demo")
    assert moved - statistics <= trainable and len(moved - statistics) > share * len(trainable)
    with torch.no_grad():
        found = model.eval()([sample])[0]["instances"]
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON


@pytest.mark.slow
@pytest.mark.grid
@needs_coco
@pytest.mark.parametrize("bf16", (False, True))
@pytest.mark.parametrize(
    "name",
    ("mask_rcnn_aognet12m_fpn_1x", "mask_rcnn_aognet12m_c4_1x", "faster_rcnn_dgnet_r50_fpn_1x"),
)
def test_default_predictor_on_an_image_file(name, bf16):
    """Frozen, as the configs are."""
    cfg = small(name)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    predictor = DefaultPredictor(cfg)
    image = cv2.imread(str(next((DATASETS / "coco/val2017").glob("*.jpg"))))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = predictor(image)["instances"]
    assert len(found) and found.scores.isfinite().all()
    assert found.pred_boxes.tensor.isfinite().all()
    assert found.image_size == image.shape[:2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    (
        (("SOLVER.MAX_ITER", 0), "SOLVER.MAX_ITER is 0; allowed are 1 and more"),
        (("MODEL.AOGNET.DROPOUT", 1.5), "MODEL.AOGNET.DROPOUT is 1.5; allowed are 0 to 1"),
        (("MODEL.FPN.IN_FEATURES", ["res2", "res4"]), "FPN.IN_FEATURES is .* consecutive ones"),
        (("MODEL.FPN.IN_FEATURES", []), "FPN.IN_FEATURES is"),
        (("MODEL.RPN.IN_FEATURES", ["p2", "p9"]), r"RPN.IN_FEATURES is .* maps, .'p2',.*'p6'"),
        (("MODEL.ROI_HEADS.IN_FEATURES", []), "MODEL.ROI_HEADS.IN_FEATURES is"),
        (("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"]), "ROI_HEADS.IN_FEATURES .* consecutive"),
    ),
)
def test_impossible_values_are_named_by_their_keys(change, sentence):
    cfg = gram.get_config("demo_mask_rcnn_aognet4m_fpn")
    check_values(cfg)
    cfg.merge_from_list(list(change))
    with pytest.raises(ValueError, match=sentence):
        check_values(cfg)


def test_every_config_s_values_are_possible():
    for name in list_configs(["d2"]):
        if not name.startswith("Base-"):
            check_values(gram.get_config(name))
