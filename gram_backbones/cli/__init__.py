"""One command line: ``gram-backbones COMMAND …``, also as ``python -m gram_backbones``.

A command is a row of `COMMANDS` and a module with ``main(argv, prog)``. The module is imported when
its command is called, and imports torch and the frameworks only after it has parsed its arguments:
every ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from ..suggestions import did_you_mean


class Command(NamedTuple):
    """Where a command is, and what it does."""

    module: str
    help: str


COMMANDS = {
    "train": Command("train", "train a detector: Detectron2 by a .yaml config, MMDetection by .py"),
    "test": Command("test", "evaluate a trained detector of either framework"),
    "metrics": Command("metrics", "AP of training runs side by side, also by class"),
    "plot": Command("plot", "draw learning curves of runs"),
    "predict": Command("predict", "draw a detector's predictions on images, videos, a camera"),
    "report": Command("report", "a run, or two, as one HTML page: curves, AP, images, config"),
    "check-data": Command("check_data", "check annotations and pictures of your own data"),
    "browse": Command("browse", "what the loader feeds the network, and what is in the data sets"),
    "train-classifier": Command("classifier", "train or evaluate a classifier"),
    "robustness": Command("robustness", "top-1 of a classifier under one-step FGSM"),
    "connectivity": Command("connectivity", "how a DG-Net connects images, and what it skips"),
    "dissect": Command("dissect", "count the units of a layer that detect a concept"),
    "convert": Command("convert", "convert a weight file to another naming or layout"),
    "export": Command("export", "write a network as ONNX or with torch.export"),
    "cost": Command("cost", "parameters, FLOPs and memory of models and detectors"),
    "configs": Command("configs", "folders or names of the shipped configs"),
    "list-weights": Command("weights", "published weights, and which are here"),
    "models": Command("models", "names of all models"),
    "env": Command("env", "versions and devices, for a bug report"),
    "draw-grammar": Command("draw_grammar", "draw the grammar of an AOGNet block"),
    "explain": Command("explain", "show where a trained AOGNet looks, node by node"),
    "demo-data": Command("demo_data", "render the demo's data set"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Raises:
        SystemExit: after ``--help``, and after an error, with a sentence.

    Examples:
        >>> main(["configs", "--names", "d2"])  # doctest: +ELLIPSIS
        Base-1x
        ...
    """
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:{width}}{command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="gram-backbones",
        usage="gram-backbones COMMAND ...",
        description="AOGNet and DG-Net backbones for Detectron2, MMDetection and timm.",
        epilog=f"commands:\n{rows}\n\ngram-backbones COMMAND --help describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        meant = did_you_mean(args.command, COMMANDS)
        parser.error(f"there is no command {args.command!r}{meant}; allowed are {[*COMMANDS]}")
    module = import_module(f".{COMMANDS[args.command].module}", __name__)
    module.main(args.arguments, prog=f"gram-backbones {args.command}")
