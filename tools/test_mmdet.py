#!/usr/bin/env python
"""Evaluate a trained MMDetection config with one of our backbones, like MMDetection's test.py.

tools/test_mmdet.py CONFIG work_dirs/…/epoch_12.pth --data-root coco
"""

import argparse
import sys

from train_mmdet import add_common_arguments, check_checkpoint, load_config

from gram_backbones.data import DataError, PictureError
from gram_backbones.distributed import end_processes
from gram_backbones.mmdet.runs import GramRunner, prepare_cpu_processes
from gram_backbones.weights.files import WeightError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="file of a trained detector; only its tensors are read")
    help = "evaluate a deployed copy: norms folded in, fused operators"
    parser.add_argument("--deploy", action="store_true", help=help)
    parser.set_defaults(dataset=None)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args, ("test_dataloader",))
        check_checkpoint(args.checkpoint)
        prepare_cpu_processes(cfg)
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        sys.exit(f"test_mmdet.py: {type(error).__name__}: {error}")
    cfg.load_from = args.checkpoint
    cfg.deploy = args.deploy
    try:
        GramRunner.from_cfg(cfg).test()  # unnamed, so that it is freed before end_processes
    except (DataError, PictureError, WeightError) as error:
        sys.exit(f"test_mmdet.py: {error}")
    end_processes()


if __name__ == "__main__":
    main()
