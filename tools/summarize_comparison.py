#!/usr/bin/env python
"""Describe the complete runs of tools/compare_backbones.sh: a table and learning curves.

tools/summarize_comparison.py work_dirs/compare
tools/summarize_comparison.py work_dirs/compare --speed     measures each backbone, too: keep quiet

Writes comparison.md, comparison.json and curves.png into the folder, and prints the table.
"""

import argparse
import os
from pathlib import Path

from gram_backbones.report.comparison import complete_runs, measure_speed, write_table
from gram_backbones.report.curves import draw_curves, read_curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="OUTPUT of tools/compare_backbones.sh")
    parser.add_argument(
        "--speed", action="store_true", help="time training and inference of each backbone, again"
    )
    args = parser.parse_args()
    os.environ["DETECTRON2_DATASETS"] = str(args.folder / "datasets")
    try:
        runs = complete_runs(args.folder)
        if args.speed:
            for by_seed in runs.values():
                measure_speed(next(iter(by_seed.values())))
        print(write_table(args.folder), end="")
        curves = [read_curves(run) for by_seed in runs.values() for run in by_seed.values()]
        draw_curves(curves, args.folder / "curves.png", ["bbox/AP", "total_loss"])
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
