"""The whole way: a classifier from scratch, and a Mask R-CNN of both frameworks on its weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from gram_backbones.d2.demo_dataset import make_demo_dataset
from tests.classification.tiny import make_folder
from tests.conftest import check_ended_well
from tests.d2.test_engine import DEMO, SMALL
from tests.mmdet.test_runs import SMALL_MASK_RCNN, write_config

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-W", "ignore", *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    check_ended_well(done)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_trained_classifier_is_the_backbone_of_mask_r_cnn_in_both_frameworks(tmp_path):
    shapes = make_folder(tmp_path / "shapes", train=48, val=16)
    recipe = "--epochs 10 --batch-size 16 --lr 0.05 --img-size 48 --workers 0 --no-ema".split()
    out = tmp_path / "classifier"
    tool = ("tools/train_classifier.py", "--model", "aognet_4m", "--data", shapes)
    run(*tool, "--output", out, *recipe)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["top1"] > 60  # percent; chance is 25

    proof = re.compile(rf"loaded (\d+) of \1 tensors from {re.escape(str(out / 'last.pth'))}")
    demo = tmp_path / "datasets"
    make_demo_dataset(demo / "gram_demo", train=6, val=2)
    small = [s for s in SMALL if "CHANNELS" not in s and not s.startswith("[8,")]
    weights = ("MODEL.WEIGHTS", out / "last.pth", "MODEL.AOGNET.NORM", "FrozenBN")
    log = run("tools/train_net.py", "--config", DEMO, *small, *weights,
              "OUTPUT_DIR", tmp_path / "d2", DETECTRON2_DATASETS=str(demo))  # fmt: skip
    assert int(proof.search(log)[1]) > 1000

    coco = demo / "gram_demo"
    (coco / "annotations").mkdir()
    for split in ("train", "val"):
        (coco / f"{split}.json").rename(coco / f"annotations/instances_{split}2017.json")
        (coco / split).rename(coco / f"{split}2017")
    base = ROOT / "mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
    init = f'model["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint="{out}/last.pth")'
    file = write_config(tmp_path, base, coco, f"{SMALL_MASK_RCNN}\n{init}\n")
    log = run("tools/train_mmdet.py", file, "--work-dir", tmp_path / "mmdet")
    assert int(proof.search(log)[1]) > 1000
