"""MMEngine's checkpoints: what our runs write is read, and nothing in a file is run."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader

from gram_backbones.mmdet.checkpoints import GramCheckpointHook, safe_loading
from gram_backbones.weights.checkpoints import SavingError
from gram_backbones.weights.files import WeightError
from tests.mmdet.test_replay import assert_same_end, make_runner, train


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


class Act(Hook):
    """Does something before an iteration, counted from 0."""

    def __init__(self, at, act):
        self.at, self.act = at, act

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            self.act()


@pytest.mark.parametrize("damage", ("half", "missing"))
def test_a_resumed_run_goes_on_from_the_checkpoint_before_a_damaged_one(damage, tmp_path):
    whole, _ = train(tmp_path / "whole", "iterations")
    last = tmp_path / "whole/iter_14.pth"
    if damage == "half":
        os.truncate(last, last.stat().st_size // 2)
    else:
        last.unlink()
    resumed, seen = train(tmp_path / "whole", "iterations", resume=True)
    assert len(seen) == 1  # of 14
    assert_same_end(resumed, whole)


def test_a_note_that_names_nothing_does_not_begin_a_run_again(tmp_path):
    """Bug: after a crash between the note's opening and its writing, training began anew."""
    (tmp_path / "last_checkpoint").touch()
    with pytest.raises(FileNotFoundError, match="last_checkpoint names no checkpoint"):
        train(tmp_path, "iterations", resume=True)


def test_checkpoints_in_another_folder_are_resumed(tmp_path):
    """Bug: an old file of the same name in the run's folder was resumed instead."""
    hook = dict(type="CheckpointHook", by_epoch=False, interval=1, out_dir=str(tmp_path / "out"))
    for count, seen in ((2, 2), (3, 1)):
        length = dict(by_epoch=False, max_iters=count)
        options = dict(train_cfg=length, default_hooks=dict(checkpoint=hook), resume=count == 3)
        runner = make_runner(tmp_path / "run", "iterations", **options)
        runner.train()
        assert len(runner.model.seen) == seen
        shutil.copy(tmp_path / "out/run/iter_1.pth", tmp_path / f"run/iter_{count}.pth")
    assert [file.parent for file in runner.saved.files()] == 2 * [tmp_path / "out/run"]


def kept(folder):
    return sorted(file.name for file in folder.glob("*.pth"))


@pytest.mark.grid
@pytest.mark.parametrize("number", (1, 2, 3))
def test_at_least_two_checkpoints_are_kept(number, tmp_path):
    hook = dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=number)
    once = dict(train_cfg=dict(by_epoch=False, max_iters=4), default_hooks=dict(checkpoint=hook))
    train(tmp_path, "iterations", **once)
    assert kept(tmp_path) == [f"iter_{i}.pth" for i in range(5 - max(2, number), 5)]
    longer = {**once, "train_cfg": dict(by_epoch=False, max_iters=6)}
    train(tmp_path, "iterations", resume=True, **longer)
    assert kept(tmp_path) == [f"iter_{i}.pth" for i in range(7 - max(2, number), 7)]


def test_a_full_disk_leaves_the_last_two_checkpoints(tmp_path, fill_disk):
    """Bug: with max_keep_ckpts=1, MMEngine deletes the only checkpoint before it writes."""
    hook = dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=1)
    runner = make_runner(tmp_path, "iterations", default_hooks=dict(checkpoint=hook))
    runner.register_hook(Act(4, lambda: fill_disk(tmp_path / "iter_5.pth")))
    with pytest.raises(SavingError, match="iter_5.pth: No space left.*good one is .*iter_4.pth"):
        runner.train()
    assert kept(tmp_path) == ["iter_3.pth", "iter_4.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_4.pth")


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path, capsys):
    """Bug: logging printed a trace for every line."""
    runner = make_runner(tmp_path, "iterations")
    log = next(h for h in runner.logger.handlers if isinstance(h, logging.FileHandler))
    log.setStream(open("/dev/full", "w"))
    with pytest.raises(SavingError, match="No space left on device; there is no checkpoint"):
        runner.train()
    assert "Logging error" not in capsys.readouterr().err


def test_a_deleted_folder_ends_the_run(tmp_path):
    """Bug: MMEngine makes the folder again, and the run goes on without its log."""
    runner = make_runner(tmp_path / "run", "iterations")
    runner.register_hook(Act(4, lambda: (tmp_path / "run").rename(tmp_path / "gone")))
    with pytest.raises(SavingError, match="run does not exist"):
        runner.train()
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_stays_until_the_next_is_whole(tmp_path, fill_disk):
    """Bug: MMEngine deletes the best one before it writes."""
    runner = make_runner(tmp_path, "iterations", custom_hooks=[])
    hook = GramCheckpointHook(by_epoch=False, save_best="AP", rule="greater")
    hook.before_train(runner)
    for tries, name in enumerate(("one_{}.pth", "two_{}.pth")):
        hook.filename_tmpl = name
        hook._save_best_checkpoint(runner, {"AP": float(tries)})
    assert kept(tmp_path) == ["best_AP_two_0.pth"]
    fill_disk(tmp_path / "best_AP_three_0.pth")
    hook.filename_tmpl = "three_{}.pth"
    with pytest.raises(SavingError):
        hook._save_best_checkpoint(runner, {"AP": 2.0})
    assert kept(tmp_path) == ["best_AP_two_0.pth"]
