#!/usr/bin/env python
"""Train and evaluate a Detectron2 config with one of our backbones, like Detectron2's train_net.py.

tools/train_net.py --config d2_configs/mask_rcnn_aognet40m_fpn_1x.yaml --num-gpus 8
tools/train_net.py --config … --eval-only MODEL.WEIGHTS output/model_final.pth
tools/train_net.py --config … --dataset my_train=train.json:images/ --val my_val=val.json:images/
"""

import argparse
import os
import sys
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from gram_backbones.d2 import GramCheckpointer, GramTrainer, add_gram_backbones_config
from gram_backbones.d2.datasets import (
    check_datasets,
    register_dataset,
    set_classes,
    use_datasets,
)
from gram_backbones.d2.engine import end_launched_processes
from gram_backbones.data import DataError, PictureError, read_pair
from gram_backbones.weights.files import WeightError, fetch_file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="path to config file")
    place = "name=annotations.json:images/ or name=folder of YOLO, Pascal VOC or LabelMe"
    parser.add_argument(
        "--dataset",
        metavar="NAME=PLACE",
        help=f"own data to train on, in place of DATASETS.TRAIN: {place}",
    )
    parser.add_argument("--val", metavar="NAME=PLACE", help="own data to evaluate on")
    args = parser.parse_args(argv)
    args.own = (None, None)
    if not args.config_file:
        parser.error("give a config: --config d2_configs/mask_rcnn_aognet40m_fpn_1x.yaml")
    return args


def load_config(args: argparse.Namespace) -> CfgNode:
    """The config with the command line's overrides, checked before anything is built."""
    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        print("No GPU found: running on the CPU.", file=sys.stderr)
    if args.dataset or (args.eval_only and args.val):
        args.own = read_pair(args.dataset, args.val, cache=os.path.join(cfg.OUTPUT_DIR, "data"))
        use_datasets(cfg, *args.own, given=_given_keys(args))
    elif args.val:
        raise ValueError("--val is for --dataset or --eval-only, and neither is given")
    names = list(cfg.DATASETS.TEST)
    resumes = args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if args.eval_only and not resumes and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only needs a trained model: append, for instance, MODEL.WEIGHTS model_final.pth"
        )
    if not resumes and cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS:
        fetch_file(cfg.MODEL.WEIGHTS)  # raises if there is none
    names = names if args.eval_only else [*cfg.DATASETS.TRAIN, *names]
    check_datasets(names)
    set_classes(cfg, names)
    cfg.freeze()
    return cfg


def _given_keys(args: argparse.Namespace) -> set[str]:
    """The keys that the config file with its bases and the command line set."""

    def keys(node: dict, path: str = "") -> Iterator[str]:
        for key, value in node.items():
            yield f"{path}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{path}{key}.")

    return {*keys(CfgNode.load_yaml_with_base(args.config_file)), *args.opts[::2]}


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    for dataset in filter(None, args.own):  # launched processes know nothing of the first one's
        register_dataset(dataset)
    try:
        run(cfg, args)
    except (DataError, PictureError, WeightError) as error:
        sys.exit(f"train_net.py: {error}")
    end_launched_processes()


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gram_backbones")
    if args.eval_only:
        model = GramTrainer.build_model(cfg)
        checkpointer = GramCheckpointer(
            model, cfg.OUTPUT_DIR, heads="exact", classes=cfg.MODEL.CLASSES
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        GramTrainer.test(cfg, model)
        return
    trainer = GramTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    args = parse_args()
    try:
        cfg = load_config(args)
    except (AssertionError, FileNotFoundError, ImportError, KeyError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError for wrong files, keys and values.
        sys.exit(f"train_net.py: {type(error).__name__}: {error.args[-1] if error.args else error}")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )
