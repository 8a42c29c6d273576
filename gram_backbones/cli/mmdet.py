"""Train and evaluate MMDetection's configs with one of our backbones."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config_folders import find_config
from ..suggestions import did_you_mean
from . import setup
from .setup import PLACE

if TYPE_CHECKING:
    from mmengine.config import Config

_TRAIN = """Train and evaluate an MMDetection config with one of our backbones, like MMDetection's.

{prog} mask-rcnn_aognet-40m_fpn_1x_coco --data-root coco
{prog} CONFIG --dataset my_train=train.json:images/ --val my_val=val.json:images/

Several processes: torchrun --nproc-per-node 8 -m gram_backbones train CONFIG --data-root coco
"""
_TEST = """Evaluate a trained MMDetection config with one of our backbones, like MMDetection's.

{prog} CONFIG work_dirs/…/epoch_12.pth --data-root coco
"""


def train_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Arguments of a training."""
    parser = _common_parser(_TRAIN, prog)
    parser.add_argument("--dataset", metavar="NAME=PLACE", help=f"own data to train on: {PLACE}")
    parser.add_argument("--amp", action="store_true", help="mixed precision; needs a GPU")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="resume from a checkpoint, by default the last one in the work dir, if any",
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help=setup.TRUST)
    return parser


def test_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Arguments of an evaluation."""
    parser = _common_parser(_TEST, prog)
    parser.add_argument("checkpoint", help="file of a trained detector; only its tensors are read")
    help = "evaluate a deployed copy: norms folded in, fused operators"
    parser.add_argument("--deploy", action="store_true", help=help)
    parser.set_defaults(dataset=None)
    return parser


def _common_parser(text: str, prog: str | None) -> argparse.ArgumentParser:
    parser = setup.parser_with_examples(text, prog)
    parser.add_argument(
        "config",
        help="a file, or the name of a shipped config (gram-backbones configs --names mmdet)",
    )
    parser.add_argument(
        "--data-root",
        help="COCO's folder, with annotations/, train2017/ and val2017/; replaces data_root in the "
        "config",
    )
    parser.add_argument("--val", metavar="NAME=PLACE", help=f"own data to evaluate on: {PLACE}")
    setup.add_accept_license(parser)
    setup.add_timeout(parser)
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
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes to the config, for instance train_cfg.max_epochs=2",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="pytorch" if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else "none",
        help="what started the processes (default: pytorch under torchrun, otherwise none)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="log versions, the whole config and the hooks"
    )
    return parser


def load_config(args: argparse.Namespace, loaders: tuple[str, ...]) -> Config:
    """The config with the command line's changes; raises if data is missing."""
    from mmengine.config import Config

    from ..data import read_pair
    from ..lost_processes import TIMEOUT
    from ..mmdet.checks import check_backbone, check_changes, check_values
    from ..mmdet.own_data import use_datasets
    from ..mmdet.runs import check_data, set_data_root, set_timeouts

    file = find_config(args.config, ["mmdet"])
    cfg = Config.fromfile(file)
    cfg.launcher = args.launcher
    if args.data_root:
        set_data_root(cfg, args.data_root)
    changes = _parse_changes(args.cfg_options)
    check_changes(cfg, changes)
    for line in _misspelt(cfg, changes):
        print(line, file=sys.stderr)
    cfg.merge_from_dict(changes)
    if args.timeout:
        set_timeouts(cfg, args.timeout, args.timeout // 2)
    elif args.launcher != "none":  # NCCL's default is less than a long evaluation takes
        given = cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout")
        cfg.merge_from_dict({"env_cfg.dist_cfg.timeout": given or TIMEOUT})
    default = os.path.join("work_dirs", Path(file).stem)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or default
    if args.pictures:
        cfg.default_hooks.visualization = dict(type="PicturesHook", num=args.pictures)
    cfg.verbose = args.verbose or cfg.get("verbose", False)
    check_backbone(cfg)
    check_values(cfg)
    train, val = read_pair(args.dataset, args.val, cache=os.path.join(cfg.work_dir, "data"))
    if args.val and not train and "train_dataloader" in loaders:
        raise ValueError("--val is for --dataset, which is not given")
    use_datasets(cfg, train, val, given=[*changes])
    check_data(cfg, [loader for loader in loaders if cfg.get(loader)])
    return cfg


def _parse_changes(pairs: Sequence[str]) -> dict:
    """``KEY=VALUE`` as MMEngine reads them."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *pairs] if pairs else []).cfg_options


def _misspelt(cfg: Config, changes: dict) -> list[str]:
    """A line for every new key that is close to one that the config has: MMEngine just adds it."""
    lines = []
    for key in changes:
        node, path = cfg, []
        for name in key.split("."):
            if not hasattr(node, "keys"):  # the index of a list, or below a plain value
                break
            path.append(name)
            if name not in node.keys():
                if meant := did_you_mean(name, node.keys()):
                    lines.append(f"--cfg-options adds {'.'.join(path)} to the config{meant}")
                break
            node = node[name]
    return lines


def check_checkpoint(file: str | None) -> None:
    """Raise FileNotFoundError if a local file does not exist, before anything is built."""
    from ..weights.records import is_published, similar_weights

    if file and "://" not in file and not is_published(file) and not os.path.isfile(file):
        raise FileNotFoundError(f"there is no checkpoint {file}{similar_weights(file)}")


def train(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train, and evaluate as the config says."""
    parser = train_parser(prog)
    args = parser.parse_args(argv)
    _run(parser.prog, lambda: _prepare_training(args), "train")


def test(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluate a checkpoint."""
    parser = test_parser(prog)
    args = parser.parse_args(argv)
    _run(parser.prog, lambda: _prepare_test(args), "test")


def _prepare_training(args: argparse.Namespace) -> Config:
    import torch

    from ..mmdet.runs import prepare_cpu_processes
    from ..weights.checkpoints import SavedCheckpoints

    cfg = load_config(args, ("train_dataloader", "val_dataloader"))
    if args.resume and args.resume != "auto":
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume and SavedCheckpoints(cfg.work_dir).noted:
        cfg.resume, cfg.load_from = True, None
    check_checkpoint(cfg.get("load_from"))
    if args.trust_checkpoint:
        cfg.trust_checkpoint = True
    if args.amp and not torch.cuda.is_available():
        raise ValueError("--amp needs a GPU")
    prepare_cpu_processes(cfg)
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    return cfg


def _prepare_test(args: argparse.Namespace) -> Config:
    from ..mmdet.runs import prepare_cpu_processes

    cfg = load_config(args, ("test_dataloader",))
    check_checkpoint(args.checkpoint)
    prepare_cpu_processes(cfg)
    cfg.load_from = args.checkpoint
    cfg.deploy = args.deploy
    return cfg


def _run(prog: str, prepare: Callable[[], Config], job: str) -> None:
    setup.start(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    from ..data import DataError, PictureError
    from ..distributed import ProcessesDifferError, end_processes
    from ..divergence import DivergenceError
    from ..lost_processes import (
        LOADER_TIMEOUT,
        LostProcessError,
        end_with_launcher,
        naming_lost_processes,
    )
    from ..upstream_warnings import silence_printed_lines
    from ..weights.files import WeightError

    with silence_printed_lines():
        from ..mmdet.runs import GramRunner
    end_with_launcher()
    try:
        cfg = prepare()
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        sys.exit(f"{prog}: {type(error).__name__}: {error}")
    errors = DataError, DivergenceError, LostProcessError, OSError, PictureError, WeightError
    errors += MemoryError, ProcessesDifferError
    try:
        seconds = (cfg.get(f"{job}_dataloader") or {}).get("timeout") or LOADER_TIMEOUT
        with naming_lost_processes(seconds):
            getattr(GramRunner.from_cfg(cfg), job)()  # unnamed, freed before end_processes
            end_processes()
    except errors as error:
        sys.exit(f"{prog}: {error}")
