"""Trainings killed by SIGKILL at random moments: ``bash tools/test.sh --reliability``.

Half of the kills come as soon as a checkpoint is being written. Each killed training is resumed and
compared with one that was left alone.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

from .arguments import make_parser
from .trainings import Tool, Training, each_tool, equal, read_whole


def parts(output: Path) -> list[Path]:
    """Checkpoints that are being written, or whose writer was killed."""
    return [*output.glob(".*.part.pth")]


def kill_somewhere(
    tool: Tool, output: Path, seconds: float, draw: random.Random, *, writing: bool
) -> Counter:
    """Kill a training once, and count what was found; it must not end before."""
    training = Training(tool, output)
    if writing:
        before = draw.randrange(3)  # whole checkpoints
        training.wait_for(lambda: len([*output.glob("[!.]*.pth")]) >= before and parts(output))
        time.sleep(draw.uniform(0, 0.01))
    else:
        time.sleep(draw.uniform(0, seconds))
    if not training.kill():
        return Counter({"ended before the kill": 1})
    found = Counter({"kills": 1, "while a checkpoint was written": bool(parts(output))})
    noted = tool.checkpoints(output)
    for file in output.glob("[!.]*.pth"):
        read_whole(file)  # raises if it is torn
        found["whole checkpoints found"] += 1
    found["resumed" if noted else "begun again, as there was no checkpoint yet"] += 1
    return found


def check(tool: Tool, folder: Path, count: int, seed: int) -> Counter:
    """Kill and resume trainings of a tool ``count`` times.

    Raises:
        AssertionError: a resumed training failed or ended with other weights.
        DamagedError: a checkpoint is torn.
    """
    draw, found = random.Random(seed), Counter()
    start = time.monotonic()
    whole = Training(tool, folder / "whole")
    assert whole.wait() == 0, whole.said()
    seconds, state = time.monotonic() - start, tool.end_of(folder / "whole")
    while found["kills"] < count:
        number = sum(found.values())
        output = folder / f"{tool.name}-{number}"
        killed = kill_somewhere(tool, output, seconds, draw, writing=found["kills"] % 2 == 0)
        found += killed
        if not killed["kills"]:
            continue
        resumed = Training(tool, output, resume=True)
        assert resumed.wait() == 0, resumed.said()
        assert equal(tool.end_of(output), state), f"{output} ended with other weights"
        found["ended with the same weights and momenta"] += 1
    return found


def main() -> None:
    for args, tool, folder in each_tool(make_parser(__doc__, 20, "kills per framework")):
        found = check(tool, folder, args.count, args.seed)
        print(f"{folder.name}:", *(f"{key}: {n};" for key, n in found.items()), flush=True)
        if found["while a checkpoint was written"] < args.count // 4:
            sys.exit("too few kills came while a checkpoint was written")


if __name__ == "__main__":
    main()
