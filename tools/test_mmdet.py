#!/usr/bin/env python
"""Evaluate a trained MMDetection config with one of our backbones, as MMDetection's test.py.

tools/test_mmdet.py CONFIG work_dirs/…/epoch_12.pth --data-root coco
"""

import argparse
import sys

from mmengine.runner import Runner
from train_mmdet import add_common_arguments, check_checkpoint, load_config

from gram_backbones.mmdet.runs import fill_backbone, own_checkpoints, prepare_cpu_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="a trained detector's file; it is trusted")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args, ("test_dataloader",))
        check_checkpoint(args.checkpoint)
    except (FileNotFoundError, KeyError, ValueError) as error:
        sys.exit(f"test_mmdet.py: {type(error).__name__}: {error}")
    cfg.load_from = args.checkpoint
    prepare_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    try:
        fill_backbone(runner, args.checkpoint)
    except ValueError as error:
        sys.exit(f"test_mmdet.py: {error}")
    with own_checkpoints():
        runner.test()


if __name__ == "__main__":
    main()
