"""Detectron2's engine with our backbones: weights, repeated runs, data sets, pictures, tools."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import gram_backbones.d2 as gram
from gram_backbones import AOGNet
from gram_backbones.d2.datasets import check_datasets
from gram_backbones.d2.demo_dataset import make_demo_dataset
from gram_backbones.d2.pictures import save_pictures
from gram_backbones.d2.replay import (
    build_replayable_train_loader,
)
from tests.conftest import DATASETS, check_ended_well, needs_coco
from tests.d2.test_backbones import small_config

ROOT = Path(__file__).resolve().parents[2]
DEMO = "d2_configs/demo_mask_rcnn_aognet4m_fpn.yaml"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo data set with a few images, registered as demo_train and demo_val."""
    root = tmp_path_factory.mktemp("datasets") / "gram_demo"
    files = make_demo_dataset(root, train=10, val=4)
    for split, file in files.items():
        register_coco_instances(f"demo_{split}", {}, str(file), str(root / split))
    yield root
    for split in files:
        DatasetCatalog.remove(f"demo_{split}")
        MetadataCatalog.remove(f"demo_{split}")


@pytest.fixture
def cfg(demo, tmp_path):
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("demo_train",), ("demo_val",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64, 96), 96
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.005
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.STEPS = (5,)
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.TEST.PICTURES.NUM = 2
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def state_of(run):
    return torch.load(Path(run) / "model_final.pth", weights_only=True)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_not_stopped(cfg, tmp_path, monkeypatch):
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = gram.GramTrainer(cfg)
    whole.resume_or_load(resume=False)
    whole.train()

    torch.manual_seed(0)  # the same fresh weights
    cfg.OUTPUT_DIR = str(tmp_path / "stopped")
    stopped = gram.GramTrainer(cfg)
    stopped.resume_or_load(resume=False)
    step = stopped.run_step

    def run_until_killed():
        if stopped.iter == 4:
            raise Killed
        step()

    monkeypatch.setattr(stopped, "run_step", run_until_killed)
    with pytest.raises(Killed):
        stopped.train()
    torch.manual_seed(99)  # another process has another random state
    np.random.seed(99)
    resumed = gram.GramTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()

    first, second = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    assert first["iteration"] == second["iteration"] == 5
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())


@pytest.mark.grid
@pytest.mark.parametrize("takes_start", (False, True))
def test_a_resumed_run_keeps_an_overridden_loader(cfg, caplog, takes_start):
    caplog.set_level("INFO")  # a trainer sets up its own logger where nobody has
    calls = []

    class Plain(gram.GramTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            calls.append(0)
            return [["mine"]]

    class Continued(gram.GramTrainer):
        @classmethod
        def build_train_loader(cls, cfg, start_iter=0):
            calls.append(start_iter)
            return [["mine"]]

    first = gram.GramTrainer(cfg)
    with EventStorage(2):
        first.iter = 2
        first.checkpointer.save("model_0000002", iteration=2)
    trainer = (Continued if takes_start else Plain)(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.data_loader == [["mine"]]
    assert calls == ([0, 3] if takes_start else [0])
    assert ("takes no start_iter" in caplog.text) != takes_start


def test_a_mapper_of_one_s_own_is_replayed(cfg):
    def mapper(record):
        return {"id": record["image_id"], "draw": np.random.rand(), "width": 2, "height": 1}

    whole = list(islice(iter(build_replayable_train_loader(cfg, 0, mapper)), 6))
    resumed = list(islice(iter(build_replayable_train_loader(cfg, 2, mapper)), 4))
    assert resumed == whole[2:]


@pytest.mark.slow
def test_another_seed_is_another_run(cfg, tmp_path):
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = ()
    states = []
    for seed in (0, 1):
        cfg.SEED, cfg.OUTPUT_DIR = seed, str(tmp_path / str(seed))
        torch.manual_seed(0)
        trainer = gram.GramTrainer(cfg)
        trainer.train()
        states.append(state_of(cfg.OUTPUT_DIR)["model"])
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.grid
@pytest.mark.parametrize("end", ("gone", "damaged"))
def test_a_run_killed_before_its_last_file_gets_it_when_it_is_resumed(cfg, tmp_path, end):
    """Bug: with nothing left to train, no ``model_final.pth`` was written."""
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.DATASETS.TEST = ()
    gram.GramTrainer(cfg).train()
    whole, last = state_of(tmp_path)["model"], tmp_path / "model_final.pth"
    if end == "gone":
        last.unlink()
        (tmp_path / "previous_checkpoint").rename(tmp_path / "last_checkpoint")
    else:
        last.write_bytes(last.read_bytes()[:500])
    gram.GramTrainer(cfg).resume_or_load()
    state = state_of(tmp_path)["model"]
    assert all(torch.equal(value, state[name]) for name, value in whole.items())


def test_runs_that_cannot_be_repeated_say_so(cfg, caplog):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    gram.GramTrainer.build_train_loader(cfg)
    assert "RepeatFactorTrainingSampler" in caplog.text


def test_weights_of_a_bare_backbone_fill_it(cfg, tmp_path):
    model = build_model(cfg)
    source = AOGNet(model.backbone.bottom_up.variant, num_classes=3)
    torch.nn.init.normal_(source.res5.blocks[0].norm.weight)
    torch.save({"model": source.state_dict()}, tmp_path / "imagenet.pth")
    gram.GramCheckpointer(model).load(str(tmp_path / "imagenet.pth"))
    state = source.state_dict()
    for name, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_path_relative_to_here_may_look_like_an_address(cfg, tmp_path, monkeypatch):
    """Bug: Detectron2 took what stands before its colon for an address's scheme."""
    model = build_model(cfg)
    folder = tmp_path / "run-2026-01-01T12:30"
    folder.mkdir()
    torch.save(model.backbone.bottom_up.state_dict(), folder / "model.pth")
    monkeypatch.chdir(tmp_path)
    target = build_model(cfg)
    gram.GramCheckpointer(target).load(f"{folder.name}/model.pth")
    state = target.backbone.bottom_up.state_dict()
    for name, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.slow
def test_weights_of_a_bare_backbone_fill_the_c4_head_too(tmp_path, caplog):
    cfg = small_config("mask_rcnn_aognet12m_c4_1x")
    model = build_model(cfg)
    source = AOGNet(model.backbone.variant, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    with caplog.at_level("INFO"):
        gram.GramCheckpointer(model).load(str(tmp_path / "imagenet.pth"))
    head = model.roi_heads.res5.state_dict()
    assert all(torch.equal(v, source.res5.state_dict()[k]) for k, v in head.items())
    count = len(head) + len(model.backbone.state_dict())
    assert f"loaded {count} of {count} tensors from" in caplog.text


@pytest.mark.grid
@pytest.mark.parametrize("damage", ("missing", "shape", "nothing"))
def test_weights_that_do_not_fill_the_backbone_stop_the_run(cfg, tmp_path, damage):
    model = build_model(cfg)
    state = AOGNet(model.backbone.bottom_up.variant, num_classes=0).state_dict()
    name = "res4.blocks.1.ops.0.conv1.0.weight"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:1]
    else:
        state = {"conv1.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "bad.pth")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(gram.WeightError, match="stem.0" if damage == "nothing" else name):
        gram.GramCheckpointer(model).load(str(tmp_path / "bad.pth"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("norm", "freeze_at"), (("BN", 0), ("BN", 1), ("FrozenBN", 0)))
def test_frozen_random_weights_are_warned_about(cfg, caplog, norm, freeze_at):
    cfg.MODEL.AOGNET.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = norm, freeze_at
    gram.GramTrainer(cfg).resume_or_load(resume=False)
    assert ("stay random" in caplog.text) == (norm == "FrozenBN" or freeze_at > 0)


@pytest.mark.grid
@pytest.mark.parametrize("predictor", (DefaultPredictor, gram.GramPredictor))
def test_a_trained_model_predicts_on_an_image_file(cfg, demo, tmp_path, predictor):
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    image = cv2.imread(str(demo / "val" / "000000.png"))
    instances = predictor(cfg)(image)["instances"]
    assert len(instances) and instances.image_size == image.shape[:2]
    assert instances.pred_masks.shape[1:] == image.shape[:2]


def test_a_predictor_without_weights_is_refused(cfg):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        gram.GramPredictor(cfg)


def test_pickled_weights_are_refused(cfg, tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read .*R-50.pkl"):
        gram.GramCheckpointer(build_model(cfg)).load(str(tmp_path / "R-50.pkl"))


def test_pictures_of_a_data_set_without_an_id_map(demo, tmp_path):
    records = DatasetCatalog.get("demo_val")[:1]
    DatasetCatalog.register("by_hand", lambda: records)
    MetadataCatalog.get("by_hand").thing_classes = list("abcd")
    results = [{"image_id": 1, "category_id": 3, "bbox": [5, 5, 40, 40], "score": 0.2}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    try:
        assert save_pictures(str(tmp_path / "results.json"), "by_hand", str(tmp_path)) == 1
    finally:
        DatasetCatalog.remove("by_hand")


def test_an_evaluation_without_results_file_draws_nothing(cfg, caplog):
    class Counting(gram.GramTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluators([])

    with caplog.at_level("INFO"):
        Counting.test(cfg, build_model(cfg))
    assert "No pictures" in caplog.text


def test_pictures_show_predictions_next_to_the_truth(demo, tmp_path):
    record = DatasetCatalog.get("demo_val")[0]
    annotations = [a for a in record["annotations"] if not a.get("iscrowd")]
    truth = json.loads((demo / "val.json").read_text())["annotations"]
    ids = [a["category_id"] for a in truth if a["image_id"] == 1 and not a["iscrowd"]]
    results = [
        {"image_id": 1, "category_id": i, "bbox": a["bbox"], "score": 0.9}
        for i, a in zip(ids, annotations)
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    count = save_pictures(
        str(tmp_path / "results.json"), "demo_val", str(tmp_path / "pictures"), limit=2
    )
    assert count == 2
    pictures = [cv2.imread(str(p)) for p in sorted((tmp_path / "pictures").glob("*.png"))]
    assert len(pictures) == 2
    image = cv2.imread(record["file_name"])
    assert pictures[0].shape == (424, 806, 3)  # titles, and two images of 160 pixels drawn at 400
    for picture, record, found in zip(pictures, DatasetCatalog.get("demo_val"), (True, False)):
        image = cv2.resize(cv2.imread(record["file_name"]), (400, 400)).astype(int)
        left, right = picture[24:, :400], picture[24:, 406:]
        # The second image has no predictions: its left half is the photograph.
        assert (np.abs(left - image).mean() > 3) == found
        assert np.abs(right - image).mean() > 3


def test_missing_data_sets_are_listed_with_their_paths(tmp_path, monkeypatch):
    register_coco_instances("gone", {}, str(tmp_path / "gone.json"), str(tmp_path / "gone"))
    try:
        with pytest.raises(FileNotFoundError) as caught:
            check_datasets(["gone"])
    finally:
        DatasetCatalog.remove("gone")
    assert str(tmp_path / "gone.json") in str(caught.value)
    assert str(tmp_path / "gone") + "\n" in str(caught.value)
    with pytest.raises(ValueError, match="no_such_set"):
        check_datasets(["no_such_set"])


def run_tool(*args, datasets, **options):
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "tools/train_net.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_train_net_without_data_stops_with_the_paths_and_no_trace(tmp_path):
    done = run_tool(
        "--config", "d2_configs/mask_rcnn_aognet40m_fpn_1x.yaml", datasets=tmp_path / "none"
    )
    assert done.returncode == 1
    assert str(tmp_path / "none" / "coco/annotations/instances_train2017.json") in done.stderr
    assert "DETECTRON2_DATASETS" in done.stderr and "Traceback" not in done.stderr


def test_train_net_checks_before_it_builds(tmp_path):
    """Within a second after the imports: the tool is loaded, then timed."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import train_net
    finally:
        sys.path.pop(0)
    register_coco_instances("gone_too", {}, str(tmp_path / "gone.json"), str(tmp_path / "gone"))
    config = gram.get_config_file("mask_rcnn_aognet40m_fpn_1x")
    args = train_net.parse_args(["--config", config, "DATASETS.TRAIN", "('gone_too',)"])
    try:
        start = time.monotonic()
        with pytest.raises(FileNotFoundError, match="gone.json"):
            train_net.load_config(args)
        assert time.monotonic() - start < 1
    finally:
        DatasetCatalog.remove("gone_too")


@pytest.mark.parametrize(
    ("args", "message"),
    (
        ((), "give a config"),
        (("--config", "no_such_file.yaml"), "no_such_file.yaml"),
        (("--config", DEMO, "SOLVER.FOO", "3"), "FOO"),
        (("--config", DEMO, "SOLVER.MAX_ITER"), "odd|length"),
        (("--config", DEMO, "--eval-only"), "MODEL.WEIGHTS"),
        (("--config", DEMO, "--eval-only", "--resume", "OUTPUT_DIR", "none"), "MODEL.WEIGHTS"),
        (("--config", DEMO, "MODEL.WEIGHTS", "gone.pth"), "there is no weight file gone.pth"),
        (("--config", DEMO, "MODEL.WEIGHTS", "autors"), "did you mean 'authors'"),
    ),
)
def test_train_net_refuses_with_a_sentence(monkeypatch, capsys, args, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train_net.py", *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/train_net.py", run_name="__main__")
    assert ended.value.code
    assert re.search(message, f"{ended.value.code} {capsys.readouterr().err}")


@pytest.mark.slow
def test_train_net_refuses_a_bad_weight_file_with_a_sentence(demo, tmp_path):
    (tmp_path / "text.pth").write_text("no weights, but a text")
    changes = ("MODEL.WEIGHTS", tmp_path / "text.pth", "OUTPUT_DIR", tmp_path / "out")
    done = run_tool("--config", DEMO, *SMALL, *changes, datasets=demo.parent)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "train_net.py: " in done.stderr
        and "cannot read " in done.stderr
        and "text.pth: " in done.stderr
    )


def test_a_backbone_s_file_does_not_make_a_predictor(cfg, tmp_path):
    state = build_model(cfg).backbone.bottom_up.state_dict()
    torch.save(state, tmp_path / "backbone.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
    with pytest.raises(gram.WeightError, match="missing: "):
        gram.GramPredictor(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        gram.GramCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)


SMALL = (
    "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 "
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.BASE_LR 0.001 "
    "MODEL.AOGNET.CHANNELS [8,16,24,32,48] TEST.PICTURES.NUM 2"
).split()


@pytest.mark.slow
def test_train_net_trains_and_evaluates_and_evaluates_again(demo, tmp_path):
    config = ("--config", DEMO)
    done = run_tool(*config, *SMALL, "OUTPUT_DIR", tmp_path, datasets=demo.parent)
    check_ended_well(done)
    for name in ("model_final.pth", "metrics.json", "inference/gram_demo_val/pictures/000000.png"):
        assert (tmp_path / name).is_file()
    assert list(tmp_path.glob("events.out.tfevents*"))
    if not torch.cuda.is_available():
        assert "running on the CPU" in done.stderr
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "again")
    done = run_tool(*config, "--eval-only", *SMALL, *weights, datasets=demo.parent)
    check_ended_well(done)
    assert (tmp_path / "again/inference/gram_demo_val/pictures/000001.png").is_file()
    # Bug: an evaluation in the training's folder replaced its config.
    kept = (tmp_path / "config.yaml").read_text()
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path)
    done = run_tool(*config, "--eval-only", *SMALL, *weights, datasets=demo.parent)
    check_ended_well(done)
    assert (tmp_path / "config.yaml").read_text() == kept
    assert "model_final.pth" in (tmp_path / "inference/config.yaml").read_text()


@pytest.mark.slow
@needs_coco
def test_a_shipped_config_trains_and_evaluates_on_coco_photographs(tmp_path):
    config = ("--config", "d2_configs/mask_rcnn_aognet12m_fpn_1x.yaml")
    small = [*SMALL, "MODEL.RPN.POST_NMS_TOPK_TEST", 50, "OUTPUT_DIR", tmp_path]
    done = run_tool(*config, *small, datasets=DATASETS)
    check_ended_well(done)
    assert len(list((tmp_path / "inference/coco_2017_val/pictures").glob("*.png"))) == 2


@pytest.mark.slow
@needs_coco
def test_a_killed_run_on_coco_photographs_ends_as_one_that_was_not(tmp_path):
    """The shipped 12M config at full width: killed after iteration 3, resumed by a new process."""
    config = ("--config", "d2_configs/mask_rcnn_aognet12m_fpn_1x.yaml")
    small = (
        "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (128,160) INPUT.MAX_SIZE_TRAIN 224 "
        "INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 192 SOLVER.IMS_PER_BATCH 2 "
        "SOLVER.MAX_ITER 6 SOLVER.STEPS () SOLVER.BASE_LR 0.002 SOLVER.CHECKPOINT_PERIOD 3 "
        "TEST.PICTURES.NUM 2 TEST.DETECTIONS_PER_IMAGE 5 MODEL.RPN.POST_NMS_TOPK_TEST 50"
    ).split()
    done = run_tool(*config, *small, "OUTPUT_DIR", tmp_path / "whole", datasets=DATASETS)
    check_ended_well(done)

    stopped = tmp_path / "stopped"
    env = {**os.environ, "DETECTRON2_DATASETS": str(DATASETS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tools/train_net.py", *config, *small, "OUTPUT_DIR", str(stopped)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (stopped / "last_checkpoint").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (stopped / "model_final.pth").exists()
    done = run_tool(*config, "--resume", *small, "OUTPUT_DIR", stopped, datasets=DATASETS)
    check_ended_well(done)
    first, second = state_of(tmp_path / "whole"), state_of(stopped)
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())
