"""Print the names of all models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the names that match a pattern."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'dgnet_*' (default: all)")
    args = parser.parse_args(argv)
    from ..registry import list_models

    print("\n".join(list_models(args.pattern)))
