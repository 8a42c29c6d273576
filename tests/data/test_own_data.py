"""docs/own-data.md, followed word by word on three classes of COCO's photographs."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torchvision.models import resnet50

from tests.conftest import ROOT, check_ended_well, needs_coco
from tests.data.subsets import CLASSES, write_subset

PAGE = (ROOT / "docs/own-data.md").read_text()
# What makes the commands short: few and small steps. Weights are a file, as tests do not download.
SHORT = {
    "Detectron2": {
        "train": "SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 "
        "INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0",
    },
    "MMDetection": {
        "train": "train_cfg.max_epochs=1 train_dataloader.batch_size=2 "
        "train_dataloader.dataset.pipeline.2.scale=(128,96) "
        "val_dataloader.dataset.pipeline.1.scale=(128,96) "
        "test_dataloader.dataset.pipeline.1.scale=(128,96)",
    },
}
FRAMEWORKS = {"Detectron2": "detectron2", "MMDetection": "mmdet"}


def commands(framework):
    section = PAGE.split(f"\n## {framework}\n")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return block.replace("\\\n", " ").strip().splitlines()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_page_goes_from_the_check_to_a_prediction(framework):
    words = [command.split()[:2] for command in commands(framework)]
    names = ("check-data", "train", "test", "predict")
    assert words == [["gram-backbones", name] for name in names]


@needs_coco
@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_page_s_commands(framework, tmp_path):
    pytest.importorskip(FRAMEWORKS[framework])
    write_subset(tmp_path / "my_data")
    (tmp_path / "street.jpg").symlink_to(next((tmp_path / "my_data/val").glob("*.jpg")))
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    told = []
    for command in commands(framework):
        command += f" {SHORT[framework].get(command.split()[1], '')}"
        command = command.replace("torchvision://resnet50", "resnet50.pth")
        command = command.replace("epoch_12", "epoch_1")
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-m", "gram_backbones", *words[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        check_ended_well(done)
        told.append(done.stdout + done.stderr)
    assert "my_train: 4 pictures" in told[0] and " 0 errors" in told[0]
    out = tmp_path / "output"
    (found,) = json.loads((out / "predictions/predictions.json").read_text()).values()
    assert set(found["names"]) <= {*CLASSES} and (out / "predictions/street.png").is_file()
    assert "Category ids in annotations" not in "".join(told)
    if framework == "Detectron2":
        assert re.search(r"loaded \d+ of \d+ tensors from .*resnet50.pth", told[1])
        assert "copypaste: AP,AP50" in told[2]
        config = (out / "mine/config.yaml").read_text()
        assert "CLASSES:\n" + "".join(f"  - {name}\n" for name in CLASSES) in config
        assert len([*(out / "evaluation/inference/my_val/pictures").glob("*.png")]) == 2
    else:
        assert "coco/bbox_mAP" in told[2]
        saved = torch.load(out / "mine/epoch_1.pth", weights_only=False)
        assert list(saved["meta"]["dataset_meta"]["classes"]) == CLASSES
        assert len([*(out / "evaluation").rglob("pictures/*.png")]) == 2
