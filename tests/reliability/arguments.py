"""What the command lines of the checks share."""

from argparse import ArgumentParser


def make_parser(about: str, count: int, what: str) -> ArgumentParser:
    """A parser with ``--count`` and ``--seed``."""
    parser = ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=count, help=f"{what}; default: {count}")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser
