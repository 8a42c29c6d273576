"""What commands share: the start before torch is imported, parsers, configs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..config_folders import find_config
from ..threads import choose_threads, keep_kernels
from ..upstream_warnings import silence_known_warnings

ACCEPT = "GRAM_BACKBONES_ACCEPT_LICENSE"  # as in weights.published, which imports torch
PLACE = "name=annotations.json:images/ or name=folder of YOLO, Pascal VOC or LabelMe"
TRUST = "let the checkpoint of --resume run arbitrary code; only for files that you trust"
Parsers = Mapping[str, Callable[[str], argparse.ArgumentParser]]


def start(processes: int = 1) -> None:
    """Choose the number of threads and say so; hide the known warnings of libraries.

    Args:
        processes: number of processes that compute side by side.
    """
    silence_known_warnings()
    keep_kernels()
    if line := choose_threads(processes):
        print(line, file=sys.stderr)


def parser_with_examples(text: str | None, prog: str | None) -> argparse.ArgumentParser:
    """A parser whose description keeps its lines, with the program's name for ``{prog}``."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, formatter_class=formatter)
    parser.description = (text or "").replace("{prog}", parser.prog)
    return parser


def add_accept_license(parser: argparse.ArgumentParser) -> None:
    """Add ``--accept-license``, which counts in this process and in those that it starts."""
    parser.add_argument(
        "--accept-license",
        action=_AcceptLicense,
        metavar="NAME",
        help="licence that you accept, for published weights that ask for it, see list-weights",
    )


class _AcceptLicense(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        os.environ[ACCEPT] = values
        setattr(namespace, self.dest, values)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout``, in whole seconds; None where it is not given."""
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="longest wait for another process of the run; for a loader worker it is half as long "
        "(default: 1800)",
    )


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 2")
    return int(text)


def check_model(parser: argparse.ArgumentParser, name: str) -> None:
    """End with the parser's usage and a sentence if there is no such model; imports torch."""
    from ..registry import find_variant

    try:
        find_variant(name)
    except ValueError as error:
        parser.error(str(error))


def parse_model_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Arguments of which ``model`` exists; the process is then ready to compute."""
    args = parser.parse_args(argv)
    start()
    check_model(parser, args.model)
    return args


def split_config(
    argv: Sequence[str] | None, prog: str | None, text: str | None, parsers: Parsers
) -> tuple[str, list[str]]:
    """The config of a command for both frameworks, and the arguments for the config's own.

    Args:
        argv: the config first, or anywhere after ``--config``.
        prog: name of the command.
        text: its description.
        parsers: for every framework a function of the command's name; ``--help`` shows all.
    """
    parser = parser_with_examples(text, prog)
    parser.usage = f"{parser.prog} CONFIG ..."
    parser.add_argument("--config", "--config-file", help=argparse.SUPPRESS)
    args = [*sys.argv[1:]] if argv is None else [*argv]
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: {parser.usage}\n\n{parser.description}")
        for name, make in parsers.items():
            options = make(parser.prog)
            options.usage = options.description = argparse.SUPPRESS
            print(f"--- {name}\n\n{options.format_help()}")
        sys.exit(0 if args else 2)
    if not args[0].startswith("-"):
        return args[0], args[1:]
    parser.add_help = False
    found, rest = parser.parse_known_args(args)
    if not found.config:
        parser.error(f"the first argument is {args[0]!r}; give the config first")
    return found.config, rest


def is_mmdet(config: str, prog: str | None) -> bool:
    """Whether a config is MMDetection's, a ``.py`` file, and not Detectron2's.

    Raises:
        SystemExit: there is no such config, or it is of neither kind; the exit code is 2.
    """
    try:
        suffix = find_config(config).suffix
        if suffix not in (".py", ".yaml", ".yml"):
            raise ValueError(f"the config is {config!r}; allowed are .yaml and .py files")
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(2)
    return suffix == ".py"


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows with columns as wide as their widest cells."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
