"""Checkpoints of runs: written whole, refused where a byte has changed, the one before kept."""

import builtins
import errno
import io
import os
import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from gram_backbones import atomic
from gram_backbones.weights import pickled
from gram_backbones.weights.checkpoints import (
    SavedCheckpoints,
    SavingError,
    naming_last_checkpoint,
    save_checkpoint,
    write_content,
)
from gram_backbones.weights.files import WeightError
from gram_backbones.weights.pickled import read_checkpoint
from gram_backbones.weights.pickles import DamagedError
from tests.weights.fuzz import flip


def write(folder, *numbers):
    saved = SavedCheckpoints(folder)
    for number in numbers:
        save_checkpoint({"w": torch.full((50,), number)}, folder / f"{number}.pth", saved.last)
        saved.add(f"{number}.pth")
    return saved


def resume(folder):
    said = []
    file, content = SavedCheckpoints(folder).resume(read_checkpoint, said.append)
    return file.name, content["w"][0].item(), said


def test_the_last_checkpoint_is_resumed(tmp_path):
    write(tmp_path, 1, 2, 3)
    assert resume(tmp_path) == ("3.pth", 3, [])


@pytest.mark.parametrize("damage", ("a bit", "half", "empty", "missing"))
def test_the_one_before_is_resumed_where_the_last_is_damaged(damage, tmp_path):
    write(tmp_path, 1, 2, 3)
    last = tmp_path / "3.pth"
    if damage == "missing":
        last.unlink()
    else:
        whole = last.read_bytes()
        length = {"half": len(whole) // 2, "empty": 0}
        last.write_bytes(flip(whole, 900) if damage == "a bit" else whole[: length[damage]])
    name, value, (said,) = resume(tmp_path)
    assert (name, value) == ("2.pth", 2)
    assert str(last) in said and said.endswith(f"before it, {tmp_path / '2.pth'}")


def test_a_run_s_next_checkpoint_follows_the_one_that_it_resumed(tmp_path):
    write(tmp_path, 1, 2, 3)
    (tmp_path / "3.pth").write_bytes(b"")
    saved = SavedCheckpoints(tmp_path)
    saved.resume(read_checkpoint, print)
    saved.add("4.pth")
    assert [file.name for file in saved.files()] == ["4.pth", "2.pth"]


def test_another_run_s_checkpoint_is_not_resumed_in_place_of_a_damaged_one(tmp_path):
    write(tmp_path, 1, 2)
    write(tmp_path, 3)
    (tmp_path / "3.pth").write_bytes(b"")
    with pytest.raises(DamagedError, match="3.pth"):
        resume(tmp_path)


def test_both_damaged(tmp_path):
    write(tmp_path, 1, 2)
    for name in ("1.pth", "2.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DamagedError, match="1.pth"):
        resume(tmp_path)


def test_a_note_that_names_nothing(tmp_path):
    (tmp_path / "last_checkpoint").write_text("")
    with pytest.raises(FileNotFoundError, match="last_checkpoint names no checkpoint"):
        resume(tmp_path)


def test_changed_bits_are_refused_or_change_nothing(tmp_path):
    """Bug: torch.load reads other weights, as it compares no checksums, also for a trusted file."""
    write(tmp_path, 1)
    file, draw, refused = tmp_path / "1.pth", random.Random(0), 0
    whole, ones = file.read_bytes(), torch.ones(50, dtype=torch.int64)
    for _ in range(100):
        file.write_bytes(flip(whole, draw.randrange(len(whole)), draw.randrange(8)))
        try:
            assert torch.equal(read_checkpoint(file)["w"], ones)
        except DamagedError:
            refused += 1
    assert refused > 30  # the rest is padding
    file.write_bytes(flip(whole, whole.index(ones.numpy().tobytes())))
    assert not torch.equal(torch.load(file)["w"], ones)
    for trust in (False, True):
        with pytest.raises(DamagedError):
            read_checkpoint(file, trust=trust)


class Full(io.RawIOBase):
    """A disk that takes so many bytes at first, then none, and then all."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if -100_000 < self.room < 0:
            self.room = -100_000
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_torch_s_words_for_a_full_disk_are_not_ours(monkeypatch):
    """Bug: where the stream could be closed, torch's error came instead: "unexpected pos"."""
    monkeypatch.setattr(builtins, "open", lambda *_: Full(2_000))
    with pytest.raises(OSError, match="No space left on device"):
        write_content({"w": torch.ones(5_000), "v": torch.ones(5_000)}, "model.pth")


def test_a_full_disk(tmp_path, fill_disk):
    saved = write(tmp_path, 1)
    fill_disk(tmp_path / "2.pth")
    with pytest.raises(SavingError) as caught:
        save_checkpoint({"w": torch.ones(50)}, tmp_path / "2.pth", saved.last)
    assert str(caught.value) == (
        f"cannot write the checkpoint {tmp_path / '2.pth'}: No space left on device; the last good "
        f"one is {tmp_path / '1.pth'}"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.pth", "last_checkpoint"]
    assert resume(tmp_path) == ("1.pth", 1, [])


@pytest.mark.parametrize("number", (errno.ENOSPC, errno.EACCES))
def test_a_disk_that_takes_no_more_is_named_with_the_last_checkpoint(number, tmp_path):
    """Bug: where another file than a checkpoint met it, the error named neither."""
    error = OSError(number, os.strerror(number))
    said = f"{tmp_path}: No space left on device; the last good checkpoint is 1.pth"
    with pytest.raises(OSError, match=said if number == errno.ENOSPC else "Permission") as caught:
        with naming_last_checkpoint(tmp_path, lambda: Path("1.pth")):
            raise error
    assert (caught.value is error) == (number == errno.EACCES)


def test_a_folder_that_is_gone_or_a_file(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("gone", "gone does not exist"), ("file", "file is not a folder")):
        with pytest.raises(SavingError, match=f"{reason}.*; there is none before it"):
            save_checkpoint({}, tmp_path / name / "1.pth", tmp_path / name / "0.pth")
    assert not Path(tmp_path, "gone").exists()


def test_a_checkpoint_that_cannot_be_read_here_is_not_passed_over(tmp_path, monkeypatch):
    """Bug: after a failing disk, or as another user, a run went on from the one before."""
    write(tmp_path, 1, 2)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(pickled, "read_pickled", Mock(side_effect=denied))
    with pytest.raises(PermissionError):
        resume(tmp_path)


@pytest.mark.parametrize("number", (errno.EIO, errno.ESTALE, errno.EACCES))
def test_a_file_that_may_be_there_is_not_missing(number, tmp_path, monkeypatch):
    """Bug: where a server did not answer, a run went on from the checkpoint before."""
    saved = write(tmp_path, 1, 2)
    monkeypatch.setattr(atomic.os, "stat", Mock(side_effect=OSError(number, os.strerror(number))))
    for ask in (lambda: resume(tmp_path), lambda: saved.noted, lambda: read_checkpoint(tmp_path)):
        with pytest.raises(OSError) as caught:
            ask()
        assert caught.value.errno == number


def test_a_note_of_zeros_names_no_checkpoint(tmp_path):
    """After a power cut, a file system may leave zeros."""
    write(tmp_path, 1, 2)
    (tmp_path / "last_checkpoint").write_bytes(bytes(5))
    assert resume(tmp_path)[:2] == ("1.pth", 1)


def test_full_memory_in_torch_s_words_is_no_damage(tmp_path, monkeypatch):
    """Bug: a run went on from the checkpoint before, and then over the whole one."""
    write(tmp_path, 1, 2)
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate")
    monkeypatch.setattr(torch, "empty", Mock(side_effect=full))
    with pytest.raises(MemoryError, match="can't allocate"):
        resume(tmp_path)


def test_a_trusted_checkpoint_s_absent_class_is_named(tmp_path):
    file = tmp_path / "1.pth"
    file.write_bytes(b"cno_such_module\nHook\n.")
    with pytest.raises(WeightError, match="1.pth: No module named 'no_such_module'") as caught:
        read_checkpoint(file, trust=True)
    assert not isinstance(caught.value, DamagedError)


def test_the_last_good_one_is_this_run_s(tmp_path):
    """Bug: a new run in an old folder named the old run's."""
    write(tmp_path, 1)
    saved = SavedCheckpoints(tmp_path)
    assert saved.noted and saved.last is None
    (tmp_path / "2.pth").touch()
    saved.add("2.pth")
    assert saved.last == tmp_path / "2.pth"


def test_the_checkpoint_that_was_named_is_kept_as_the_one_before(tmp_path):
    write(tmp_path, 1, 2, 3)
    saved = SavedCheckpoints(tmp_path)
    saved.resumed(tmp_path / "2.pth")
    saved.add("4.pth")
    assert [file.name for file in saved.files()] == ["4.pth", "2.pth"]
