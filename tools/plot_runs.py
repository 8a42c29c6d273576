#!/usr/bin/env python
"""Tabulate runs of tools/train_classifier.py, and plot them as gram-backbones plot does.

tools/plot_runs.py work_dirs/evidence/* --output curves.png
tools/plot_runs.py work_dirs/evidence/* --table

Runs whose folders differ only in -seedN share one colour, and one row of the table.
"""

import argparse
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from gram_backbones.report.curves import Curves, by_row, draw_curves, read_curves


def parameters(folder: Path) -> int | None:
    """Number of parameters of a run's model, or None if the run has no checkpoint."""
    # Here and not above: --help answers at once.
    import torch

    from gram_backbones import create_model
    from gram_backbones.classification.checkpoint import read_checkpoint
    from gram_backbones.flops import count_parameters

    if not (folder / "last.pth").is_file():
        return None
    config = read_checkpoint(folder / "last.pth")["training"]["config"]
    with torch.device("meta"):
        model = create_model(
            config["model"], num_classes=config["num_classes"], **config.get("model_kwargs", {})
        )
    return count_parameters(model)


def tabulated(rows: dict[str, list[Curves]]) -> str:
    """A Markdown table of the last epochs; means over the seeds unless it says otherwise."""
    table = []
    for row, runs in rows.items():
        for run in runs:
            if "top1" not in run.series:
                raise ValueError(f"{run.folder} has no top1; the table is of classifiers")
        counts = filter(None, (parameters(run.folder) for run in runs))
        last = [{name: points[-1][1] for name, points in run.series.items()} for run in runs]
        epochs = sorted({run.series["loss"][-1][0] for run in runs})
        seconds = [value for run in runs for _, value in run.series.get("seconds", ())]

        def average(key: str, form: str, last=last) -> str:
            values = [values[key] for values in last if key in values]
            return form.format(mean(values)) if values else "–"

        table.append(
            (
                row,
                next((f"{count:,}" for count in counts), "–"),
                " to ".join(map(str, epochs[:: max(1, len(epochs) - 1)])),
                ", ".join(f"{values['top1']:.2f}" for values in last),
                average("top1", "{:.2f}"),
                average("loss", "{:.4f}"),
                average("closed_edges", "{:.1%}"),
                average("closed_blocks", "{:.1%}"),
                f"{mean(seconds):.0f}" if seconds else "–",
            )
        )
    heads = ("row", "parameters", "epochs", "top-1 by seed", "mean", "training loss")
    heads += ("closed edges", "closed blocks", "seconds per epoch")
    return tabulate(table, heads, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="picture of the curves to write"
    )
    parser.add_argument(
        "--metric", default="top1", help="metric to plot next to the training loss (default: top1)"
    )
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    args = parser.parse_args()
    if args.output is None and not args.table:
        parser.error("nothing to do: give --output, --table or both")
    try:
        runs = [read_curves(folder) for folder in args.folders]
        if args.output is not None:
            draw_curves(runs, args.output, [args.metric, "loss"])
        if args.table:
            print(tabulated(by_row(runs)))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
