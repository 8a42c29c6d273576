"""Train and evaluate a Detectron2 config with one of our backbones, like Detectron2's train_net.py.

{prog} --config mask_rcnn_aognet40m_fpn_1x --num-gpus 8
{prog} --config … --eval-only MODEL.WEIGHTS output/model_final.pth

Pairs of KEY VALUE at the end change the config. VERBOSE True logs versions, the whole config and
the model's modules.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config_folders import find_config
from . import setup

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's ``default_argument_parser``, which would import torch, with ``--config``."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument(
        "--config",
        "--config-file",
        dest="config_file",
        metavar="CONFIG",
        help="a file, or the name of a shipped config (gram-backbones configs --names d2)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS only")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    # A port of the user's own, like Detectron2's: whoever left processes behind sees it taken.
    port = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where processes meet, see torch.distributed",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The arguments, with a config among them."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    args.prog = parser.prog
    if not args.config_file:
        parser.error("give a config: --config mask_rcnn_aognet40m_fpn_1x")
    return args


def load_config(args: argparse.Namespace) -> CfgNode:
    """The config with the command line's changes, checked before anything is built."""
    from detectron2.config import get_cfg

    from ..d2 import add_gram_backbones_config
    from ..d2.config import merge_config
    from ..d2.datasets import check_datasets
    from ..d2.interface import CONFIG_NODES
    from ..d2.runs import on_available_device
    from ..registry import find_variant
    from ..weights.files import fetch_file
    from ..weights.records import is_published

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    merge_config(cfg, str(find_config(args.config_file, ["d2"])), args.opts)
    cfg = on_available_device(cfg)
    for node in CONFIG_NODES:
        find_variant(cfg.MODEL[node].VARIANT)  # raises if there is none
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


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train or evaluate, in as many processes as were asked for."""
    args = parse_args(argv, prog)
    setup.start(max(1, args.num_gpus))
    from detectron2.engine import launch

    try:
        cfg = load_config(args)
    except (AssertionError, FileNotFoundError, KeyError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError for wrong files, keys and values.
        said = error.args[-1] if error.args else error
        sys.exit(f"{args.prog}: {type(error).__name__}: {said}")
    launch(
        _run_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )


def _run_process(cfg: CfgNode, args: argparse.Namespace) -> None:
    from ..d2.engine import end_launched_processes
    from ..weights.files import WeightError

    try:
        _run(cfg, args)
    except WeightError as error:
        sys.exit(f"{args.prog}: {error}")
    end_launched_processes()


def _run(cfg: CfgNode, args: argparse.Namespace) -> None:
    from detectron2.utils.env import seed_all_rng

    from ..d2 import GramCheckpointer, GramTrainer
    from ..d2.runs import start_run

    if cfg.SEED < 0:
        seed_all_rng()  # torch's own first seed is the same in every process
    if args.eval_only:
        cfg = start_run(cfg)
        model = GramTrainer.build_model(cfg)
        checkpointer = GramCheckpointer(model, cfg.OUTPUT_DIR, heads="exact")
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        GramTrainer.test(cfg, model)
        return
    trainer = GramTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
