"""Several CPU processes under Detectron2's engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from gram_backbones.d2.demo_dataset import make_demo_dataset
from tests.conftest import check_ended_well
from tests.d2.test_engine import DEMO, ROOT, run_tool
from tests.d2.test_engine import SMALL as SMALL_DEMO

CONFIGS = {
    "aognet": ("faster_rcnn_aognet12m_fpn_1x", "MODEL.AOGNET.CHANNELS [8,16,24,32,48]"),
    "dgnet": ("faster_rcnn_dgnet_r50_fpn_1x", "MODEL.DGNET.VARIANT dgnet_r18"),
}
# Nothing is sampled: all anchors and all proposals train, as many for every image, so that losses
# are means over images and two processes with one image each compute what one computes on both.
FIXED = (
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE 4000 MODEL.RPN.POSITIVE_FRACTION 1.0 "
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN 500 MODEL.RPN.POST_NMS_TOPK_TRAIN 50 "
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT False MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 200 "
    "MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 INPUT.RANDOM_FLIP none"
).split()
SMALL = (
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_HEADS.NUM_CLASSES 4 "
    "INPUT.MIN_SIZE_TRAIN (96,) DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 "
    "SOLVER.BASE_LR 0.02 SOLVER.WARMUP_ITERS 0 SOLVER.MAX_ITER 5 SOLVER.STEPS () "
    "SOLVER.CHECKPOINT_PERIOD 1 DATASETS.TRAIN ('gram_demo_train',) DATASETS.TEST ()"
).split()


def state_of(run, name):
    return torch.load(Path(run) / f"model_{name}.pth", weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ("aognet", "dgnet"))
def test_two_processes_end_with_the_weights_of_one_on_the_joint_batch(
    family, tmp_path, check_gloo_ended
):
    if torch.cuda.device_count() == 1:
        pytest.skip("two processes take two GPUs, or none")
    make_demo_dataset(tmp_path / "gram_demo", train=10, val=1)
    config, change = CONFIGS[family]
    ends = {}
    for processes in (1, 2):
        url = ("--num-gpus", processes, "--dist-url", "auto")
        changes = (*SMALL, *FIXED, *change.split(), "OUTPUT_DIR", tmp_path / str(processes))
        done = run_tool("--config", f"d2_configs/{config}.yaml", *url, *changes, datasets=tmp_path)
        check_ended_well(done)
        ends[processes] = state_of(tmp_path / str(processes), "final")
    check_gloo_ended()
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[2][name], value, rtol=0, atol=1e-5, msg=name)
    first = state_of(tmp_path / "1", "0000000")
    moves = [(value - first[name]).abs().max() for name, value in ends[1].items()]
    assert max(moves) > 5e-4  # by far more than the bound


@pytest.mark.slow
@pytest.mark.parametrize("processes", (1, 2))
def test_a_resumed_run_with_workers_ends_as_one_that_was_not_stopped(processes, tmp_path):
    """Workers and aspect ratio grouping as in the shipped configs; the resume has other workers."""
    if torch.cuda.device_count() == 1 and processes == 2:
        pytest.skip("two processes take two GPUs, or none")
    make_demo_dataset(tmp_path / "gram_demo", train=10, val=1)
    config, change = CONFIGS["aognet"]
    url = ("--num-gpus", processes, "--dist-url", "auto")
    many = 4 // processes
    for name, steps in (("whole", ((6, many),)), ("stopped", ((3, many), (6, many // 2)))):
        for last, workers in steps:
            changes = (*SMALL, *change.split(), "DATALOADER.NUM_WORKERS", workers)
            changes += ("SOLVER.MAX_ITER", last, "OUTPUT_DIR", tmp_path / name)
            arguments = ("--config", f"d2_configs/{config}.yaml", *url, "--resume", *changes)
            done = run_tool(*arguments, datasets=tmp_path)
            check_ended_well(done)
    whole, stopped = (state_of(tmp_path / name, "final") for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.slow
def test_two_processes_evaluate(tmp_path, check_gloo_ended):
    if torch.cuda.device_count() == 1:
        pytest.skip("two processes take two GPUs, or none")
    make_demo_dataset(tmp_path / "gram_demo", train=4, val=2)
    config = ("--config", DEMO, "--num-gpus", 2, "--dist-url", "auto")
    done = run_tool(*config, *SMALL_DEMO, "OUTPUT_DIR", tmp_path, datasets=tmp_path)
    check_ended_well(done)
    check_gloo_ended()
    assert (tmp_path / "model_final.pth").is_file()
    assert (tmp_path / "inference/gram_demo_val/pictures/000001.png").is_file()


@pytest.mark.slow
def test_sigterm_goes_on_to_both_processes_and_one_checkpoint_is_whole(tmp_path):
    if torch.cuda.device_count() == 1:
        pytest.skip("two processes take two GPUs, or none")
    make_demo_dataset(tmp_path / "gram_demo", train=10, val=1)
    config, change = CONFIGS["aognet"]
    changes = (*SMALL, *change.split(), "SOLVER.MAX_ITER", 500, "OUTPUT_DIR", tmp_path / "out")
    changes += ("SOLVER.CHECKPOINT_PERIOD", 1000)
    arguments = ("--config", f"d2_configs/{config}.yaml", "--num-gpus", 2, "--dist-url", "auto")
    process = subprocess.Popen(
        [sys.executable, *map(str, ("tools/train_net.py", *arguments, *changes))],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "total_loss" in line:  # the first line about an iteration
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 143 and "Traceback" not in rest, rest
    assert rest.count("Then: SIGTERM was received") == 1
    last = (tmp_path / "out/last_checkpoint").read_text()
    assert last != "model_final.pth" and state_of(tmp_path / "out", last[6:-4])
