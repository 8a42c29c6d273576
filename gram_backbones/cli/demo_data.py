"""Render the demo data set, a few hundred synthetic images in COCO's instance format."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Render the data set into a folder."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("root", help="output folder, for instance datasets/gram_demo")
    parser.add_argument("--train", type=int, default=480, help="training images (default: 480)")
    parser.add_argument("--val", type=int, default=80, help="held-out images (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    args = parser.parse_args(argv)
    setup.start()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    from ..d2.demo_dataset import make_demo_dataset

    files = make_demo_dataset(args.root, train=args.train, val=args.val, seed=args.seed)
    print("wrote", ", ".join(map(str, files.values())))
