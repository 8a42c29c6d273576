"""Damaged checkpoints and disks that take no more: ``bash tools/test.sh --reliability``."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gram_backbones.weights.pickles import DamagedError
from tests.weights.fuzz import flip

from .arguments import make_parser
from .trainings import Tool, Training, each_tool, equal, read_whole


def check_flips(file: Path, count: int, draw: random.Random) -> Counter:
    """Read a checkpoint with one changed bit, ``count`` times.

    Raises:
        AssertionError: it was read, and held something else.
    """
    found, whole, content = Counter(), file.read_bytes(), read_whole(file)
    changed = file.with_name("changed.pth")
    for _ in range(count):
        changed.write_bytes(flip(whole, draw.randrange(len(whole)), draw.randrange(8)))
        try:
            read = read_whole(changed)
        except DamagedError:
            found["changed bits refused"] += 1
            continue
        assert equal(read, content), "a changed bit was read"
        found["changed bits that mean nothing"] += 1
    changed.unlink()
    return found


def cut(file: Path, draw: random.Random) -> None:
    """Leave only the beginning of a file."""
    os.truncate(file, draw.randrange(file.stat().st_size))


def flip_tensor(file: Path, draw: random.Random) -> None:
    """Change a bit of a file's largest tensor."""
    with zipfile.ZipFile(file) as archive:
        start = max(archive.infolist(), key=lambda entry: entry.file_size).header_offset
    file.write_bytes(flip(file.read_bytes(), start + 200 + draw.randrange(1000)))


def delete(file: Path, draw: random.Random) -> None:
    """Delete a file."""
    file.unlink()


def forget_last(output: Path) -> None:
    """Turn a detector's run into one that was killed before its last checkpoint."""
    *_, before, last, end = sorted(output.glob("[!.]*.pth"), key=lambda file: file.stat().st_mtime)
    end.unlink()
    (output / "last_checkpoint").write_text(last.name)
    (output / "previous_checkpoint").write_text(before.name)


def check_damage(tool: Tool, whole: Path, count: int, draw: random.Random) -> Counter:
    """Damage a run's last checkpoint and resume, ``count`` times."""
    found = Counter()
    for number in range(count):
        output = whole.with_name(f"damaged-{number}")
        shutil.copytree(whole, output)
        for note in output.glob("*_checkpoint"):  # MMEngine's are paths into the copied folder
            note.write_text(Path(note.read_text()).name)
        if number % 2 and tool.name != "classifier":
            forget_last(output)
        last, before = tool.checkpoints(output)
        (cut, flip_tensor, delete)[number % 3](last, draw)
        resumed = Training(tool, output, resume=True)
        assert resumed.wait() == 0, resumed.said()
        line = f"Going on from the checkpoint before it, {before}"
        assert line in " ".join(resumed.said().split()), resumed.said()
        assert equal(tool.end_of(output), tool.end_of(whole)), "other weights"
        found["damaged last checkpoints, the one before resumed"] += 1
    return found


def limit_files(training: Training, output: Path) -> None:
    """Let the process write no file of a checkpoint's size any more, as on a full disk."""
    size = min(file.stat().st_size for file in output.glob("[!.]*.pth")) // 2
    resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (size, size))


def lock(training: Training, output: Path) -> None:
    """Make the folder read-only."""
    if os.getuid():
        output.chmod(0o555)
    else:  # whom no mode binds
        subprocess.run(["mount", "--bind", output, output], check=True)
        locked = ["mount", "-o", "remount,ro,bind", output]
        while subprocess.run(locked, stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.01)  # it is busy while a file is being written there


def unlock(output: Path) -> None:
    """Take back what :func:`lock` did."""
    if os.getuid():
        output.chmod(0o755)
    else:
        subprocess.run(["umount", output], check=True)


def remove(training: Training, output: Path) -> None:
    """Delete the folder."""
    output.rename(output.with_name("removed"))
    shutil.rmtree(output.with_name("removed"))


def check_obstacle(
    tool: Tool, whole: Path, act: Callable[[Training, Path], None], reason: str
) -> str:
    """Start a run, act after its first checkpoint, and judge how it ends; then resume it."""
    output = whole.with_name(act.__name__)
    training = Training(tool, output)
    assert training.wait_for(lambda: bool(tool.checkpoints(output))), training.said()
    act(training, output)
    try:
        code, said = training.wait(), training.said()
    finally:
        if act is lock:
            unlock(output)
    line = said.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in said, (code, said)
    assert line.startswith("gram-backbones train") and reason in line, line
    if act is not remove:
        first = tool.checkpoints(output)[0]
        # The first that cannot be written may be MMEngine's own log, where the mode forbids it.
        assert f" is {first}" in line or "vis_data" in line, line
        assert not [*output.glob(".*.part*")]
        read_whole(first)
        resumed = Training(tool, output, resume=True)
        assert resumed.wait() == 0, resumed.said()
        assert equal(tool.end_of(output), tool.end_of(whole)), "other weights"
    return line


def check(tool: Tool, folder: Path, count: int, flips: int, seed: int) -> Counter:
    """All checks of a tool."""
    draw, whole = random.Random(seed), folder / "whole"
    training = Training(tool, whole)
    assert training.wait() == 0, training.said()
    found = check_flips(whole / tool.end, flips, draw)
    found += check_damage(tool, whole, count, draw)
    obstacles = (
        (limit_files, "File too large"),
        (lock, "Permission denied" if os.getuid() else "Read-only file system"),
        (remove, "does not exist"),
    )
    for act, reason in obstacles[:count]:
        print(f"  {act.__doc__} {check_obstacle(tool, whole, act, reason)}")
        found["runs that could not write, ended with a sentence and 1"] += 1
    taken = folder / "taken"
    taken.touch()
    training = Training(tool, taken)
    assert training.wait() == 1 and "Traceback" not in training.said(), training.said()
    print(f"  A file in the folder's place. {training.said().strip().splitlines()[-1]}")
    found["runs that could not write, ended with a sentence and 1"] += 1
    return found


def main() -> None:
    parser = make_parser(__doc__, 20, "damaged files")
    parser.add_argument("--flips", type=int, default=200, help="changed bits; default: 200")
    for args, tool, folder in each_tool(parser):
        found = check(tool, folder, args.count, args.flips, args.seed)
        print(f"{folder.name}:", *(f"{key}: {n};" for key, n in found.items()), flush=True)


if __name__ == "__main__":
    main()
