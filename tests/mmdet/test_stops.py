"""Trainings in MMDetection that diverge or are told to stop: what is saved and what is said."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="its part of the package draws the data set")

from mmengine.hooks import Hook

from tests.mmdet.test_replay import assert_same_end, make_runner, train
from tests.mmdet.test_runs import ROOT, SMALL_MASK_RCNN, demo, run, write_config  # noqa: F401

BASE = ROOT / "mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
TOOL = ROOT / "tools/train_mmdet.py"


@pytest.mark.slow
def test_a_training_that_diverges_says_where_it_began(demo, tmp_path):  # noqa: F811
    extra = (
        'optim_wrapper = dict(optimizer=dict(lr=1e30))\ndefault_hooks["checkpoint"]["interval"] = 1'
    )
    file = write_config(tmp_path, BASE, demo, SMALL_MASK_RCNN + extra)
    done = run(TOOL, file, "--work-dir", tmp_path / "out", "--pictures", 0)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "train_mmdet.py: training diverged at iteration 2: " in last and " is nan" in last
    assert "first output that is not finite: of backbone." in last
    assert f"images of the batch: {demo / 'train2017'}" in last
    assert f"last good checkpoint: {tmp_path / 'out/iter_1.pth'}" in last
    assert [path.name for path in (tmp_path / "out").glob("*.pth")] == ["iter_1.pth"]


class TellToStop(Hook):
    """Sends SIGTERM to this process within an iteration, counted from 0."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_the_resumed_run_ends_alike(tmp_path, monkeypatch):
    whole, seen = train(tmp_path / "whole", "iterations")
    runner = make_runner(tmp_path / "stopped", "iterations")
    runner.register_hook(TellToStop(at=4))
    save = runner._save_completed

    def save_and_tell_again(error):
        os.kill(os.getpid(), signal.SIGTERM)  # bug: a second one ended the process
        save(error)

    monkeypatch.setattr(runner, "_save_completed", save_and_tell_again)
    with pytest.raises(SystemExit) as ended:
        runner.train()
    assert ended.value.code == 143
    file = tmp_path / "stopped/iter_5.pth"  # the iteration was finished
    assert (tmp_path / "stopped/last_checkpoint").read_text() == str(file)
    resumed, rest = train(tmp_path / "resumed", "iterations", resume=True, load_from=str(file))
    assert runner.model.seen + rest == seen
    assert_same_end(resumed, whole)


@pytest.mark.slow
def test_sigterm_ends_the_tool_with_its_exit_code(demo, tmp_path):  # noqa: F811
    file = write_config(tmp_path, BASE, demo, SMALL_MASK_RCNN)
    changes = ("--pictures", 0, "--cfg-options", "train_cfg.max_iters=500")
    changes += ("default_hooks.checkpoint.interval=1000",)
    command = [TOOL, file, "--work-dir", tmp_path / "out", *changes]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if "Iter(train) [  1/500]" in line:
            break
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    rest = process.stdout.read()
    assert process.wait() == 143 and time.monotonic() - start < 60, rest
    (saved,) = (tmp_path / "out").glob("iter_*.pth")
    assert int(saved.stem.removeprefix("iter_")) < 100
    assert f"Saved {saved.name}. Then: SIGTERM was received" in rest
