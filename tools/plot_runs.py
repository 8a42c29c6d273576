#!/usr/bin/env python
"""Plot and tabulate runs of tools/train_classifier.py.

tools/plot_runs.py work_dirs/evidence/* --output curves.png
tools/plot_runs.py work_dirs/evidence/* --table

Runs whose folders differ only in -seedN share one colour, and one row of the table.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
import torch
from tabulate import tabulate

from gram_backbones import create_model
from gram_backbones.classification.checkpoint import read_checkpoint
from gram_backbones.flops import count_parameters

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the backend is chosen first)

_STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        row: name of its folder without ``-seedN``.
        seed: N, or 0 if the name has none.
        lines: entries of metrics.jsonl, one per epoch.
        folder: its folder.
    """

    row: str
    seed: int
    lines: list[dict[str, float]]
    folder: Path

    def parameters(self) -> int | None:
        """Number of parameters, or None if the run has no checkpoint."""
        if not (self.folder / "last.pth").is_file():
            return None
        config = read_checkpoint(self.folder / "last.pth")["training"]["config"]
        kwargs = config.get("model_kwargs", {})
        with torch.device("meta"):
            model = create_model(config["model"], num_classes=config["num_classes"], **kwargs)
        return count_parameters(model)


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: there is none.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder} holds no run: there is no {file}")
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if not lines:
        raise ValueError(f"{file} is empty")
    row, seed = re.fullmatch(r"(.+?)(?:-seed(\d+))?", folder.resolve().name).groups()
    return Run(row, int(seed or 0), lines, folder)


def group(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by row, in the given order of rows, sorted by seed."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    return {row: sorted(found, key=lambda run: run.seed) for row, found in rows.items()}


def draw(rows: dict[str, list[Run]], metric: str, file: Path) -> None:
    """Plot a metric and the training loss against epochs, one colour for each row.

    Raises:
        ValueError: no run has the metric, or matplotlib does not support the file format.
    """
    known = {key: None for runs in rows.values() for run in runs for key in run.lines[0]}
    if metric not in known:
        raise ValueError(f"metric is {metric!r}; the runs have {', '.join(known)}")
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    colours = plt.colormaps["tab10"].colors
    for index, (row, runs) in enumerate(rows.items()):
        style = _STYLES[index // len(colours) % len(_STYLES)]
        look = dict(color=colours[index % len(colours)], linestyle=style, linewidth=1.5)
        for number, run in enumerate(runs):
            for axis, key in zip(axes, (metric, "loss")):
                points = [(line["epoch"], line[key]) for line in run.lines if key in line]
                marker = "o" if len(points) == 1 else None
                label = None if number else row
                axis.plot(*zip(*points), marker=marker, label=label, **look)
    for axis, title in zip(axes, (metric, "training loss")):
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles, labels = axes[1].get_legend_handles_labels()  # every run has a loss
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=120, facecolor="white")
    plt.close(figure)


def tabulated(rows: dict[str, list[Run]]) -> str:
    """A Markdown table of the last epochs; means over the seeds unless it says otherwise."""

    def average(runs: list[Run], key: str, form: str) -> str:
        values = [run.lines[-1][key] for run in runs if key in run.lines[-1]]
        return form.format(mean(values)) if values else "–"

    table = []
    for row, runs in rows.items():
        parameters = next(filter(None, (run.parameters() for run in runs)), None)
        epochs = sorted({run.lines[-1]["epoch"] for run in runs})
        seconds = [line["seconds"] for run in runs for line in run.lines if "seconds" in line]
        table.append(
            (
                row,
                "–" if parameters is None else f"{parameters:,}",
                " to ".join(map(str, epochs[:: max(1, len(epochs) - 1)])),
                ", ".join(f"{run.lines[-1]['top1']:.2f}" for run in runs),
                average(runs, "top1", "{:.2f}"),
                average(runs, "loss", "{:.4f}"),
                average(runs, "closed_edges", "{:.1%}"),
                average(runs, "closed_blocks", "{:.1%}"),
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
        rows = group([read_run(folder) for folder in args.folders])
        if args.output is not None:
            draw(rows, args.metric, args.output)
        if args.table:
            print(tabulated(rows))
    except (OSError, ValueError) as error:
        print(f"plot_runs.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
