"""MMEngine's checkpoints: what our runs write is read, and nothing in a file is run."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader

from gram_backbones.mmdet.checkpoints import safe_loading
from gram_backbones.weights.files import WeightError
from tests.mmdet.test_replay import make_runner


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def write(folder, **content):
    torch.save({"state_dict": {"w": torch.ones(2)}, **content}, folder / "f.pth")
    return str(folder / "f.pth")


def test_histories_and_numbers_are_read(tmp_path):
    file = write(tmp_path, loss=HistoryBuffer([1.0, 3.0], [1, 1]), best=np.float64(0.5))
    with safe_loading():
        content = CheckpointLoader.load_checkpoint(file)
    content["loss"].update(5.0)
    assert content["loss"].mean() == 3 and content["best"] == 0.5


SCHEDULES = {
    "MultiStepLR": dict(milestones=[8, 11]),
    "LinearLR": {},
    "CosineAnnealingLR": dict(T_max=8),
    "CosineRestartLR": dict(periods=[4, 4], restart_weights=[1, 1], eta_min=0.0),
    "ReduceOnPlateauLR": dict(monitor="loss"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_schedules_are_read(name, tmp_path):
    """Bug: milestones are a Counter, so that no run of a 1x config could be resumed."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, momentum=0.9)
    schedule = dict(type=name, optimizer=optimizer, **SCHEDULES[name])
    state = PARAM_SCHEDULERS.build(schedule).state_dict()
    file = write(tmp_path, param_schedulers=[state], optimizer=optimizer.state_dict())
    with safe_loading():
        content = CheckpointLoader.load_checkpoint(file)
    assert content["param_schedulers"] == [state]
    assert type(content["param_schedulers"][0].get("milestones")) is type(state.get("milestones"))


def test_code_runs_only_in_a_trusted_checkpoint(tmp_path):
    """Bug: MMEngine reads a file again, and runs its code, where torch refuses to."""
    mark = tmp_path / "mark"
    file = write(tmp_path, hook=Hostile(mark))
    with safe_loading(), pytest.raises(WeightError, match=r"needs posix\.mkdir.*--trust-check"):
        CheckpointLoader.load_checkpoint(file)
    assert not mark.exists()
    with safe_loading(trust=True):
        CheckpointLoader.load_checkpoint(file)
    assert mark.exists()


def test_a_config_in_a_checkpoint_is_not_run(tmp_path):
    """Bug: MMEngine runs the text at meta.config of a resumed run's checkpoint as a config."""
    mark = tmp_path / "mark"
    once = dict(train_cfg=dict(max_iters=1, by_epoch=False))
    make_runner(tmp_path / "run", "iterations", **once).train()
    file = tmp_path / "run/iter_1.pth"
    content = torch.load(file, weights_only=False)
    content["meta"]["config"] = f"import os\nos.mkdir({str(mark)!r})\n"
    torch.save(content, file)
    for trusted in (False, True):
        resumed = dict(resume=True, load_from=str(file), trust_checkpoint=trusted)
        runner = make_runner(tmp_path / "resumed", "iterations", **once, **resumed)
        runner.train()
        assert runner.iter == 1 and mark.exists() == trusted


def test_a_hostile_checkpoint_stops_a_resumed_run(tmp_path):
    mark = tmp_path / "mark"
    file = write(tmp_path, message_hub=Hostile(mark), meta={"epoch": 0, "iter": 1})
    runner = make_runner(tmp_path / "run", "iterations", resume=True, load_from=file)
    with pytest.raises(WeightError, match="needs posix.mkdir"):
        runner.train()
    assert not mark.exists() and not list(Path(runner.work_dir).glob("*.pth"))
