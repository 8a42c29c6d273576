"""Files that several processes write at once, and what a killed process leaves."""

import os

from gram_backbones import atomic
from gram_backbones.atomic import replacing


def test_a_file_that_two_write_at_once_is_one_of_theirs(tmp_path):
    """Bug: both wrote the same part, of which the first to end left nothing for the other."""
    file = tmp_path / "last.pth"
    with replacing(file) as one:
        one.write_text("one")
        with replacing(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one" and [*tmp_path.iterdir()] == [file]


def test_what_a_killed_process_left_is_deleted(tmp_path):
    file, left, written = (tmp_path / name for name in ("a.pth", ".b.0123abcd.part.pth", "x"))
    with replacing(written) as part:  # by a process that lives
        left.touch()
        os.utime(left, (0, atomic._START - 1))
        part.touch()
        atomic._delete_leftovers.cache_clear()
        with replacing(file) as other:
            other.touch()
    assert sorted(tmp_path.iterdir()) == [file, written]
