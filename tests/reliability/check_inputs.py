"""Pictures, annotations and losses that are wrong: ``bash tools/test.sh --reliability``.

The tests of these are counted one by one. What is too large for a test comes after them: a JSON of
10 million boxes, of which the last is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .arguments import make_parser

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/data/test_pictures.py",
    "tests/d2/test_own_pictures.py",
    "tests/mmdet/test_own_pictures.py",
    "tests/classification/test_pictures.py",
    "tests/data/test_annotations.py",
    "tests/test_divergence.py",
    "tests/d2/test_stops.py",
    "tests/mmdet/test_stops.py",
)
BOXES = 50  # per image
GB = 0.9  # of memory for a million boxes, and as much for the program itself


class Counts:
    """A plugin of pytest: how the cases of every test ended."""

    def __init__(self) -> None:
        self.found: dict[str, Counter] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a case when it has run, or when it could not."""
        if report.when == "call" or report.outcome != "passed":
            test = report.nodeid.partition("[")[0]
            self.found.setdefault(test, Counter())[report.outcome] += 1


def write_boxes(file: Path, count: int) -> None:
    """Write a COCO JSON with ``count`` boxes; the last one has no width."""
    image = '{"id":%d,"file_name":"%06d.jpg","width":640,"height":480}'
    box = '{"id":%d,"image_id":%d,"category_id":1,"iscrowd":0,"area":9,"bbox":[%d.5,%d.25,%d.75,9]}'
    with file.open("w") as stream:
        images = range(1, count // BOXES + 2)
        stream.write('{"categories":[{"id":1,"name":"a"}],"images":[')
        stream.write(",".join(image % (i, i) for i in images) + '],"annotations":[')
        for i in range(1, count):
            stream.write(box % (i, i // BOXES + 1, i % 300, i % 200, 10 + i % 100) + ",")
        last = box % (count, count // BOXES + 1, 1, 1, 0)
        stream.write(last.replace("0.75", "0") + "]}")


def check_boxes(count: int) -> bool:
    """Whether the quick check names the last of ``count`` boxes within its memory limit."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_boxes(folder / "boxes.json", count)
        (folder / "pictures").mkdir()
        spec = f"boxes={folder}/boxes.json:{folder}/pictures"
        report = folder / "report.json"
        arguments = ["-m", "gram_backbones", "check-data", spec, "--quick", "--json", str(report)]
        start = time.monotonic()
        pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ)
        _, status, used = os.wait4(pid, 0)
        named = report.is_file() and f"annotation {count} of" in report.read_text()
    memory = used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(
        f"JSON of {count} boxes: exit code {os.waitstatus_to_exitcode(status)}, the wrong box "
        f"{'named' if named else 'not named'}, {time.monotonic() - start:.0f} s, {memory:.1f} GB"
    )
    return bool(named and memory < GB * (1 + count / 1e6))


def main() -> int:
    """Print the counts; 1 if a test failed or the large file was not checked as promised."""
    args = make_parser(__doc__, 10_000_000, "boxes of the JSON").parse_args()
    boxes_good = check_boxes(args.count)  # first, as Linux counts a parent's memory too
    os.chdir(ROOT)
    counts = Counts()
    code = pytest.main(["-qq", "--no-header", "-p", "no:cacheprovider", *TESTS], [counts])
    for test, found in counts.found.items():
        print(f"{test}: {', '.join(f'{n} {outcome}' for outcome, n in found.items())}")
    passed = {test.partition("::")[0] for test, found in counts.found.items() if found["passed"]}
    if absent := [file for file in TESTS if file not in passed]:
        print("nothing passed of", *absent)
    return int(not boxes_good or code != 0 or bool(absent))


if __name__ == "__main__":
    sys.exit(main())
