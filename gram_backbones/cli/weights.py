"""Print the published weights: their tags, licences, sizes, origins, and which files are here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a table with columns as wide as their widest cells."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.parse_args(argv)
    from ..weights.published import weight_table

    rows = weight_table()
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
