"""Print the folders of the shipped configs, of both frameworks or of one; or the configs' names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..config_folders import FRAMEWORKS, config_dirs, list_configs


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print folders or names."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("framework", nargs="?", choices=FRAMEWORKS)
    parser.add_argument("--names", action="store_true", help="names, which train takes as configs")
    args = parser.parse_args(argv)
    frameworks = [args.framework] if args.framework else FRAMEWORKS
    lines = list_configs(frameworks) if args.names else config_dirs(frameworks)
    print("\n".join(map(str, lines)))
