"""Files that several processes write at once, and what a killed process leaves."""

import os
import subprocess
import sys

import pytest

from gram_backbones import atomic
from gram_backbones.atomic import replacing


def test_a_file_that_two_write_at_once_is_one_of_theirs(tmp_path, monkeypatch):
    """Bug: both wrote the same part, of which the first to end left nothing for the other."""
    file = tmp_path / "last.pth"
    with replacing(file) as one:
        one.write_text("one")
        monkeypatch.setattr(atomic.os, "getpid", lambda: -1)
        with replacing(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one" and [*tmp_path.iterdir()] == [file]


@pytest.mark.skipif(os.name != "posix", reason="a process is asked for by a signal")
def test_what_a_killed_process_left_is_deleted(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    left, other, mine, file = (
        tmp_path / name
        for name in (
            f".a.{atomic._HOST}-{dead.pid}.part.pth",
            f".a.00000000-{dead.pid}.part.pth",  # of another machine
            f".b.{atomic._HOST}-{os.getpid()}.part.pth",
            "c.pth",
        )
    )
    for path in (left, other, mine):
        path.touch()
    with replacing(file) as part:
        part.touch()
    assert {*tmp_path.iterdir()} == {other, mine, file}
