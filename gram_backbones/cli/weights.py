"""Print the published weights: their tags, licences, sizes, origins, and which files are here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.parse_args(argv)
    from ..weights.published import weight_table

    setup.print_table(weight_table())
