"""Print the AP of the last evaluation of training runs, side by side; both frameworks' runs.

{prog} output/demo
{prog} output/aognet work_dirs/dgnet --classes

A run is its folder: OUTPUT_DIR of Detectron2, the work dir of MMDetection. AP is in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import setup

if TYPE_CHECKING:
    from ..report.runs import Run

TASKS = {"bbox": "box", "segm": "mask"}
KINDS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--classes", action="store_true", help="also the AP of every class")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print one table of all runs, and with ``--classes`` one of their classes."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    from ..report.runs import read_run

    # Detectron2's file stands for its run.
    paths = [path.parent if path.name == "metrics.json" else path for path in args.runs]
    try:
        runs = [read_run(path) for path in paths]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if without := [str(path) for path, run in zip(paths, runs) if not run.precisions]:
        parser.error(f"there is no evaluation yet in {', '.join(without)}")
    named = dict(zip(_names(paths), runs))
    setup.print_table(overall_table(named))
    if args.classes:
        print()
        setup.print_table(class_table(named))


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or whole paths where two folders have one name."""
    names = [path.resolve().name for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]


def overall_table(runs: dict[str, Run]) -> Iterable[Sequence[str]]:
    """Rows by task and run, the first with the headings; a dash stands for no objects."""
    yield "", "run", "iterations", *KINDS
    for task, title in TASKS.items():
        for name, run in runs.items():
            found = run.precisions
            if f"{task}/AP" in found:
                cells = [_cell(found.get(f"{task}/{kind}")) for kind in KINDS]
                yield title, name, str(run.iterations or "–"), *cells


def class_table(runs: dict[str, Run]) -> Iterable[Sequence[str]]:
    """Rows by class, a column for every run and task."""
    columns = {
        (name, task): {
            key.removeprefix(f"{task}/AP-"): value
            for key, value in run.precisions.items()
            if key.startswith(f"{task}/AP-")
        }
        for task in TASKS
        for name, run in runs.items()
    }
    columns = {key: found for key, found in columns.items() if found}
    yield "class", *(f"{name} {TASKS[task]}" for name, task in columns)
    for label in dict.fromkeys(label for found in columns.values() for label in found):
        yield label, *(_cell(found.get(label)) for found in columns.values())


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
