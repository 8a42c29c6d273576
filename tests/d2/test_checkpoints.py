"""Detectron2's checkpoints: written whole, and the one before a damaged one is resumed."""

import errno
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import HookBase
from detectron2.utils import comm

from gram_backbones.d2 import GramCheckpointer, GramTrainer
from gram_backbones.d2.engine import _without_trace
from gram_backbones.d2.runs import _RunLog
from gram_backbones.weights.checkpoints import SavedCheckpoints, SavingError
from tests.conftest import ROOT, check_ended_well
from tests.d2.test_engine import cfg, demo  # noqa: F401 (fixtures)


def write(folder, *values):
    """A checkpointer that has saved a model with each of these weights as ``1.pth``, and so on."""
    model = torch.nn.Linear(1, 1)
    checkpointer = GramCheckpointer(model, str(folder))
    for number, value in enumerate(values, 1):
        torch.nn.init.constant_(model.weight, value)
        checkpointer.save(str(number), iteration=number)
    return checkpointer


def test_the_one_before_a_damaged_checkpoint_is_resumed(tmp_path, caplog):
    write(tmp_path, 3.0, 5.0)
    assert (tmp_path / "previous_checkpoint").read_text() == "1.pth"
    (tmp_path / "2.pth").write_bytes((tmp_path / "2.pth").read_bytes()[:500])
    resumed = write(tmp_path)
    logger = logging.getLogger("fvcore.common.checkpoint")
    logger.addHandler(caplog.handler)
    try:
        rest = resumed.resume_or_load("", resume=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert rest["iteration"] == 1 and resumed.model.weight.item() == 3
    assert f"Going on from the checkpoint before it, {tmp_path / '1.pth'}" in caplog.text


def test_a_process_that_only_watched_knows_the_checkpoint_before(tmp_path):
    """Bug: where another process saves after a broken picture, the one before was forgotten."""
    first, other = write(tmp_path, 3.0), GramCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    other.save_to_disk = False
    for checkpointer in (first, other):
        checkpointer.save("2")
    other.save_to_disk = True
    other.save("3")
    names = [(tmp_path / f"{note}_checkpoint").read_text() for note in ("last", "previous")]
    assert names == ["3.pth", "2.pth"]


def test_a_rank_that_does_not_save_knows_the_checkpoints(cfg, tmp_path, monkeypatch):  # noqa: F811
    """Bug: they have no hook that saves, so that a rank which failed named none."""
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.DATASETS.TEST = ()
    trainer = GramTrainer(cfg)
    trainer.train()
    assert trainer.checkpointer.saved.own == "model_final.pth" and not [*tmp_path.glob("*.pth")]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, fill_disk):
    """Bug: Detectron2 writes in place, and notes what it could not write."""
    checkpointer = write(tmp_path, 3.0)
    fill_disk(tmp_path / "2.pth")
    with pytest.raises(SavingError, match="No space left on device; the last good one is .*1.pth"):
        checkpointer.save("2")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["1.pth", "last_checkpoint"]
    assert (tmp_path / "last_checkpoint").read_text() == "1.pth"


@pytest.mark.parametrize("error", (SavingError("full"), OSError(errno.ENOSPC, "full")))
def test_no_hook_ends_by_writing_to_a_full_disk(error, tmp_path):
    """Bug: TensorBoard's writer made a deleted folder again, or hid the first error."""

    class Hook(HookBase):
        ended = False

        def after_step(self):
            raise error

        def after_train(self):
            self.ended = True

    hook, trainer = Hook(), GramTrainer.__new__(GramTrainer)
    trainer._hooks, trainer.storage, trainer.iter = [hook], SimpleNamespace(), 0
    trainer.checkpointer = SimpleNamespace(saved=SavedCheckpoints(tmp_path))
    with pytest.raises(SavingError, match="full"):
        try:
            trainer.after_step()
        finally:
            trainer.after_train()
    assert not hook.ended


def test_detectron2_logs_a_sentence_for_an_error_that_is_one():
    error = SavingError("cannot write the checkpoint a.pth: No space left on device")
    record = SimpleNamespace(msg="Exception", args=(), exc_info=(SavingError, error, None))
    assert _without_trace(record)
    assert record.exc_info is None and record.msg.endswith(str(error))
    record = SimpleNamespace(msg="Exception", args=(), exc_info=(KeyError, KeyError(), None))
    assert _without_trace(record) and record.exc_info


def test_a_log_that_cannot_be_written_ends_the_run(capsys):
    """Bug: logging printed a trace for every line."""
    log = _RunLog("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        log.handle(logging.makeLogRecord({"msg": "iteration 20"}))
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_is_killed_while_it_saves_goes_on():
    """A sample of the check, which forks and so needs a process with one thread."""
    command = [sys.executable, "-m", "tests.reliability.check_kills", "--count", "1"]
    command += ["--only", "detectron2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    check_ended_well(done)
    assert re.search(
        "^detectron2: .*ended with the same weights and momenta: 1;", done.stdout, re.M
    )
