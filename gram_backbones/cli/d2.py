"""Train and evaluate a Detectron2 config with one of our backbones, like Detectron2's train_net.py.

{prog} --config mask_rcnn_aognet40m_fpn_1x --num-gpus 8
{prog} --config … --eval-only MODEL.WEIGHTS output/model_final.pth
{prog} --config … --dataset my_train=train.json:images/ --val my_val=val.json:images/

Pairs of KEY VALUE at the end change the config. VERBOSE True logs versions, the whole config and
the model's modules.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

from ..config_folders import find_config
from . import setup
from .setup import PLACE

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
        "--dataset",
        metavar="NAME=PLACE",
        help=f"own data to train on, in place of DATASETS.TRAIN: {PLACE}",
    )
    parser.add_argument("--val", metavar="NAME=PLACE", help="own data to evaluate on")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any"
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help=setup.TRUST)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS only")
    setup.add_accept_license(parser)
    setup.add_timeout(parser)
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
    args.own = (None, None)
    if not args.config_file:
        parser.error("give a config: --config mask_rcnn_aognet40m_fpn_1x")
    return args


def load_config(args: argparse.Namespace) -> CfgNode:
    """The config with the command line's changes, checked before anything is built."""
    from detectron2.config import get_cfg

    from ..d2 import add_gram_backbones_config
    from ..d2.config import check_values, merge_config
    from ..d2.datasets import check_datasets, set_classes, use_datasets
    from ..d2.interface import CONFIG_NODES
    from ..d2.runs import on_available_device
    from ..data import read_pair
    from ..registry import find_variant
    from ..weights.checkpoints import SavedCheckpoints
    from ..weights.published import fetch_weights
    from ..weights.records import is_published

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    file = str(find_config(args.config_file, ["d2"]))
    timeout = ["DATALOADER.TIMEOUT", str(args.timeout // 2)] if args.timeout else []
    merge_config(cfg, file, [*timeout, *args.opts])
    cfg = on_available_device(cfg)
    check_values(cfg)
    for node in CONFIG_NODES:
        find_variant(cfg.MODEL[node].VARIANT)  # raises if there is none
    if args.dataset or (args.eval_only and args.val):
        args.own = read_pair(args.dataset, args.val, cache=os.path.join(cfg.OUTPUT_DIR, "data"))
        train, val = args.own
        use_datasets(cfg, train, val, given=_given_keys(file, args.opts))
    elif args.val:
        raise ValueError("--val is for --dataset or --eval-only, and neither is given")
    names = list(cfg.DATASETS.TEST)
    resumes = args.resume and SavedCheckpoints(cfg.OUTPUT_DIR).noted
    if args.eval_only and not resumes and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only needs a trained model: append, for instance, MODEL.WEIGHTS model_final.pth"
        )
    weights = "" if resumes else cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not is_published(weights):
        fetch_weights(weights)  # raises if there is none
    names = names if args.eval_only else [*cfg.DATASETS.TRAIN, *names]
    check_datasets(names)
    set_classes(cfg, names)
    cfg.freeze()
    return cfg


def _given_keys(file: str, opts: Sequence[str]) -> list[str]:
    """The keys that the config file with its bases and the command line set."""
    from detectron2.config import CfgNode

    def keys(node: dict, path: str = "") -> Iterator[str]:
        for key, value in node.items():
            yield f"{path}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{path}{key}.")

    return [*keys(CfgNode.load_yaml_with_base(file)), *opts[::2]]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train or evaluate, in as many processes as were asked for."""
    args = parse_args(argv, prog)
    setup.start(max(1, args.num_gpus))
    from torch.multiprocessing import ProcessExitedException

    try:
        cfg = load_config(args)
    except (AssertionError, FileNotFoundError, ImportError, KeyError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError for wrong files, keys and values.
        said = error.args[-1] if error.args else error
        sys.exit(f"{args.prog}: {type(error).__name__}: {said}")
    try:
        _launch(args, cfg)
    except ProcessExitedException as error:
        if error.exit_code < 0:  # otherwise the process that failed has said why
            print(f"{args.prog}: {error}", file=sys.stderr)
        sys.exit(max(1, error.exit_code))


def _launch(args: argparse.Namespace, cfg: CfgNode) -> None:
    from detectron2.engine import launch

    from ..lost_processes import TIMEOUT
    from ..termination import forwarding_termination
    from ..upstream_warnings import silence_started_processes

    silence_started_processes()
    several = args.num_gpus * args.num_machines > 1  # then Detectron2 starts processes
    with forwarding_termination() if several else nullcontext():
        launch(
            _run_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
            timeout=timedelta(seconds=args.timeout or TIMEOUT),
        )


def _run_process(cfg: CfgNode, args: argparse.Namespace) -> None:
    from ..d2.datasets import register_dataset
    from ..d2.engine import end_launched_processes
    from ..data import DataError, PictureError
    from ..distributed import ProcessesDifferError
    from ..divergence import DivergenceError
    from ..lost_processes import LostProcessError, end_with_launcher, naming_lost_processes
    from ..weights.files import WeightError

    end_with_launcher()
    for dataset in filter(None, args.own):  # launched processes know nothing of the first one's
        register_dataset(dataset)
    errors = DataError, DivergenceError, LostProcessError, OSError, PictureError, WeightError
    errors += MemoryError, ProcessesDifferError
    try:
        with naming_lost_processes(cfg.DATALOADER.TIMEOUT):
            _run(cfg, args)
            end_launched_processes()
    except errors as error:
        sys.exit(f"{args.prog}: {error}")


def _run(cfg: CfgNode, args: argparse.Namespace) -> None:
    from detectron2.utils.env import seed_all_rng

    from ..d2 import GramCheckpointer, GramTrainer
    from ..d2.engine import warn_about_data
    from ..d2.runs import start_run

    if cfg.SEED < 0:
        seed_all_rng()  # torch's own first seed is the same in every process
    if args.eval_only:
        cfg = start_run(cfg, evaluates=True)
        warn_about_data(cfg, cfg.DATASETS.TEST)
        model = GramTrainer.build_model(cfg)
        checkpointer = GramCheckpointer(
            model, cfg.OUTPUT_DIR, heads="exact", classes=cfg.MODEL.CLASSES
        )
        checkpointer.trust = args.trust_checkpoint
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        GramTrainer.test(cfg, model)
        return
    trainer = GramTrainer(cfg)
    trainer.checkpointer.trust = args.trust_checkpoint
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
