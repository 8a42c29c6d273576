#!/usr/bin/env python
"""Train and evaluate an MMDetection config with one of our backbones, like MMDetection's train.py.

tools/train_mmdet.py mmdet_configs/mask_rcnn/mask-rcnn_aognet-40m_fpn_1x_coco.py --data-root coco
tools/train_mmdet.py CONFIG --dataset my_train=train.json:images/ --val my_val=val.json:images/
torchrun --nproc-per-node 8 tools/train_mmdet.py CONFIG --data-root coco
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import find_latest_checkpoint

from gram_backbones.data import DataError, PictureError, read_pair
from gram_backbones.distributed import end_processes
from gram_backbones.mmdet.own_data import use_datasets
from gram_backbones.mmdet.runs import (
    GramRunner,
    check_data,
    prepare_cpu_processes,
    set_data_root,
)
from gram_backbones.weights.files import WeightError


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--data-root",
        help="COCO's folder, with annotations/, train2017/ and val2017/; replaces data_root in the "
        "config",
    )
    place = "name=annotations.json:images/ or name=folder of YOLO, Pascal VOC or LabelMe"
    parser.add_argument("--val", metavar="NAME=PLACE", help=f"own data to evaluate on: {place}")
    parser.add_argument("--work-dir", help="folder for logs, checkpoints and pictures")
    parser.add_argument(
        "--pictures",
        type=int,
        default=32,
        metavar="N",
        help="draw predictions next to the ground truth for the first N images of each evaluation; "
        "0 leaves this to the config (default: 32)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="changes to the config, for instance train_cfg.max_epochs=2",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="pytorch" if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else "none",
        help="what started the processes (default: pytorch under torchrun, otherwise none)",
    )


def load_config(args: argparse.Namespace, loaders: tuple[str, ...]) -> Config:
    """The config with the command line's changes; raises if data is missing."""
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.data_root:
        set_data_root(cfg, args.data_root)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    default = os.path.join("work_dirs", Path(args.config).stem)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or default
    if args.pictures:
        cfg.default_hooks.visualization = dict(type="PicturesHook", num=args.pictures)
    train, val = read_pair(args.dataset, args.val, cache=os.path.join(cfg.work_dir, "data"))
    if args.val and not train and "train_dataloader" in loaders:
        raise ValueError("--val is for --dataset, which is not given")
    use_datasets(cfg, train, val, given=[*(args.cfg_options or {})])
    check_data(cfg, [loader for loader in loaders if cfg.get(loader)])
    return cfg


def check_checkpoint(file: str | None) -> None:
    """Raise FileNotFoundError if a local file does not exist, before anything is built."""
    if file and "://" not in file and not os.path.isfile(file):
        raise FileNotFoundError(f"there is no checkpoint {file}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--dataset", metavar="NAME=PLACE", help="own data to train on, written like that of --val"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision; needs a GPU")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="resume from a checkpoint, by default the last one in the work dir, if any; use only "
        "files that you trust",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args, ("train_dataloader", "val_dataloader"))
        if args.resume and args.resume != "auto":
            cfg.resume, cfg.load_from = True, args.resume
        elif args.resume and find_latest_checkpoint(cfg.work_dir):
            cfg.resume, cfg.load_from = True, None
        check_checkpoint(cfg.get("load_from"))
        if args.amp and not torch.cuda.is_available():
            raise ValueError("--amp needs a GPU")
        prepare_cpu_processes(cfg)
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        sys.exit(f"train_mmdet.py: {type(error).__name__}: {error}")
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    try:
        GramRunner.from_cfg(cfg).train()  # unnamed, so that it is freed before end_processes
    except (DataError, PictureError, WeightError) as error:
        sys.exit(f"train_mmdet.py: {error}")
    end_processes()


if __name__ == "__main__":
    main()
