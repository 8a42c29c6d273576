"""The project's tests on other versions of Python and torch, in fresh environments.

One environment at a time, which takes up to 8 GB and is deleted afterwards. ``bash tools/test.sh
--reliability`` leaves this out: it takes 10 minutes for a row, and interpreters that it is given.

    python -m tests.reliability.try_versions python3.10:2.6.0 python3.13
    python -m tests.reliability.try_versions python3.12 --mmdetection    # compiles mmcv
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"Detectron2": "tests/d2", "MMDetection": "tests/mmdet"}
CORE = ["tests/aognet", "tests/dgnet", "tests/weights"]
HEAD = "| Python | torch | torchvision | numpy | with | passed | failed | skipped |"
VERSIONS = """
import platform
from importlib.metadata import version
print(platform.python_version(), *map(version, ("torch", "torchvision", "numpy")), sep=" | ")
"""


def find_python(name: str) -> str | None:
    """The path of a CPython that starts, None if there is none of this name."""
    path = shutil.which(name)
    code = "import platform; assert platform.python_implementation() == 'CPython'"
    if path and subprocess.run([path, "-c", code], capture_output=True).returncode == 0:
        return path
    return None


def run(*command: str | Path, allowed: Sequence[int] = (0,), **variables: str) -> str:
    """What a command prints that runs in the checkout.

    Raises:
        RuntimeError: its exit code is not allowed; the message has the end of what it printed.
    """
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode not in allowed:
        end = "\n".join(done.stdout.splitlines()[-20:])
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{end}")
    return done.stdout


def run_tests(python: str | Path, paths: Sequence[str]) -> tuple[str, list[str]]:
    """Run the quick tests in folders and files.

    Returns:
        The counts as cells of a row, and a line for every failed test.

    Raises:
        RuntimeError: pytest itself failed.
    """
    options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    command = (python, "-m", "pytest", *options, *paths)
    told = run(*command, allowed=(0, 1), OMP_NUM_THREADS="1")
    # Libraries may write after the line with the counts, when the interpreter ends.
    last = [line for line in told.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)][-1:]
    found = Counter({kind: int(n) for n, kind in re.findall(r"(\d+) ([a-z]+)", " ".join(last))})
    failed = found["failed"] + found["error"] + found["errors"]
    lines = re.findall("^(?:FAILED|ERROR) .*", told, re.MULTILINE)
    return f"{found['passed']} | {failed} | {found['skipped']}", lines


def rows(python: str, torch: str, frameworks: Sequence[str]) -> Iterator[str]:
    """Rows of the table for one version of Python and torch, each followed by failed tests.

    The first is what ``pip install gram-backbones`` gives, the next what tools/setup.sh gives.
    """
    core = [*CORE, *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/test_*.py"))]
    with TemporaryDirectory(prefix="versions-") as folder:
        inside = Path(folder, "bin/python")
        run(python, "-m", "venv", folder)

        def row(what: str, paths: Sequence[str]) -> Iterator[str]:
            counts, failures = run_tests(inside, paths)
            yield f"| {run(inside, '-c', VERSIONS).strip()} | {what} | {counts} |"
            yield from failures

        wanted = f"torch=={torch}" if torch else "torch"
        run(inside, "-m", "pip", "install", "-q", wanted, "torchvision", f"{ROOT}[test]")
        yield from row("the core alone", core)
        if frameworks:
            d2 = "package" if "Detectron2" in frameworks else "none"
            mmdet = "maintained" if "MMDetection" in frameworks else "none"
            chosen = dict(VENV=folder, TORCH=torch or "", DETECTRON2=d2, MMDET=mmdet)
            run("bash", "tools/setup.sh", **chosen)
            folders = [FRAMEWORKS[name] for name in frameworks]
            yield from row(", ".join(frameworks), [*core, *folders])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the result is 1 if a test failed or nothing could be installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="+", metavar="PYTHON[:TORCH]", help="such as python3.10:2.6.0"
    )
    for name in FRAMEWORKS:
        parser.add_argument(
            f"--{name.lower()}", action="append_const", const=name, dest="frameworks", default=[],
            help="its tests too, with the pinned set of tools/setup.sh",
        )  # fmt: skip
    args = parser.parse_args(argv)
    print(HEAD, re.sub("[^|]+", "---", HEAD), sep="\n", flush=True)
    all_passed = True
    for name, _, torch in (row.partition(":") for row in args.rows):
        python = find_python(name)
        if python is None:
            print(f"{name}: no such CPython here", flush=True)
            continue
        try:
            for line in rows(python, torch, args.frameworks):
                all_passed &= line.startswith("|")
                print(line, flush=True)
        except RuntimeError as error:
            all_passed = False
            print(f"{name}: {error}", flush=True)
    return not all_passed


if __name__ == "__main__":
    sys.exit(main())
