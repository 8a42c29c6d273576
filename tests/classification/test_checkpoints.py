"""Classifiers' checkpoints: the last and the one before it, also where one is damaged."""

import errno
import os
from unittest.mock import Mock

import pytest
import torch

from gram_backbones.classification import checkpoint
from gram_backbones.classification.checkpoint import read_last, write_checkpoint
from gram_backbones.classification.engine import Trainer
from gram_backbones.cli import classifier
from gram_backbones.termination import Termination
from gram_backbones.weights.checkpoints import SavingError
from gram_backbones.weights.pickles import DamagedError


@pytest.fixture
def last(tmp_path):
    """``last.pth`` with the number 3, after 1 and 2."""
    for number in (1, 2, 3):
        write(tmp_path / "last.pth", number)
    return tmp_path / "last.pth"


def write(path, number):
    write_checkpoint(path, {"state_dict": {"w": torch.full((50,), number)}}, best=False)


def read(path):
    file, content = read_last(path)
    return file.name, content["state_dict"]["w"][0].item()


def damage(path):
    path.write_bytes(path.read_bytes()[:900])


def test_the_one_before_is_resumed_where_the_last_is_damaged_or_missing(last, capsys):
    assert read(last) == ("last.pth", 3) and not capsys.readouterr().out
    damage(last)
    assert read(last) == ("previous.pth", 2)
    assert f"the checkpoint before it, {last.with_name('previous.pth')}" in capsys.readouterr().out
    last.unlink()
    assert read(last) == ("previous.pth", 2)


def test_a_damaged_file_does_not_take_the_place_of_a_good_one(last):
    damage(last)
    write(last, 4)
    assert read(last) == ("last.pth", 4)
    damage(last)
    assert read(last) == ("previous.pth", 2)


def test_another_file_is_not_resumed_in_place_of_one_that_was_named(last):
    named = last.with_name("mine.pth")
    named.write_bytes(b"")
    with pytest.raises(DamagedError, match="mine.pth"):
        read_last(named)


def test_a_full_disk_leaves_both(last, fill_disk):
    fill_disk(last)
    with pytest.raises(SavingError, match=f"No space left on device; the last good one is {last}"):
        write(last, 4)
    assert read(last) == ("last.pth", 3)
    assert sorted(file.name for file in last.parent.iterdir()) == ["last.pth", "previous.pth"]


def test_a_full_disk_that_the_metrics_meet_names_the_checkpoint(last, monkeypatch):
    """Bug: the error named no file."""
    full = OSError(errno.ENOSPC, "No space left on device")
    trainer = Trainer.__new__(Trainer)
    trainer.output, trainer._termination = last.parent, Termination()
    monkeypatch.setattr(trainer, "_run_epochs", Mock(side_effect=full))
    with pytest.raises(SavingError, match=f"No space.*; the last good checkpoint is {last}"):
        trainer.run()


def test_resume_begins_where_there_is_nothing_yet(last, tmp_path):
    common = ["--model", "aognet_4m", "--data", "images", "--resume", "--output"]
    assert classifier.parse_args([*common, str(tmp_path / "new")]).resume is None
    assert classifier.parse_args([*common, str(tmp_path)]).resume == last
    last.unlink()  # as for a moment when a checkpoint is written
    assert classifier.parse_args([*common, str(tmp_path)]).resume == last


def test_a_disk_that_is_full_when_it_is_flushed_leaves_both(last, monkeypatch):
    """Bug: last.pth had become previous.pth before the new file was known to be on the disk."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    with pytest.raises(SavingError, match=f"the last good one is {last}"):
        write(last, 4)
    assert read(last) == ("last.pth", 3)
    assert read(last.with_name("previous.pth")) == ("previous.pth", 2)


def test_two_processes_may_save_at_once(last, monkeypatch):
    """Bug: where the other had just made last.pth the one before, this one could not save."""
    previous = last.with_name("previous.pth")
    monkeypatch.setattr(checkpoint, "check_sums", lambda path: path.replace(previous))
    write(last, 4)
    assert read(last) == ("last.pth", 4) and read(previous) == ("previous.pth", 3)
