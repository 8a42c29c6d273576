#!/usr/bin/env python
"""Train and evaluate a Detectron2 config with one of our backbones, like Detectron2's train_net.py.

tools/train_net.py --config d2_configs/mask_rcnn_aognet40m_fpn_1x.yaml --num-gpus 8
tools/train_net.py --config … --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import os
import sys

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from gram_backbones.d2 import GramCheckpointer, GramTrainer, add_gram_backbones_config
from gram_backbones.d2.datasets import check_datasets
from gram_backbones.d2.engine import end_launched_processes
from gram_backbones.weights.files import WeightError, fetch_file
from gram_backbones.weights.records import is_published


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="path to config file")
    args = parser.parse_args(argv)
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
    names = list(cfg.DATASETS.TEST)
    resumes = args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if args.eval_only and not resumes and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only needs a trained model: append, for instance, MODEL.WEIGHTS model_final.pth"
        )
    weights = "" if resumes else cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not is_published(weights):
        fetch_file(weights)  # raises if there is none
    check_datasets(names if args.eval_only else [*cfg.DATASETS.TRAIN, *names])
    cfg.freeze()
    return cfg


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    try:
        run(cfg, args)
    except WeightError as error:
        sys.exit(f"train_net.py: {error}")
    end_launched_processes()


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gram_backbones")
    if args.eval_only:
        model = GramTrainer.build_model(cfg)
        checkpointer = GramCheckpointer(model, cfg.OUTPUT_DIR, heads="exact")
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
    except (AssertionError, FileNotFoundError, KeyError, ValueError) as error:
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
