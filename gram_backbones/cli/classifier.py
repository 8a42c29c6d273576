"""Train or evaluate a classifier on a folder of images or on CIFAR, with the papers' recipes.

{prog} --model aognet_12m --data imagenet --output work_dirs/aognet_12m
torchrun --nproc-per-node 8 -m gram_backbones train-classifier --model dgnet_r50 --data imagenet
{prog} --model aognet_cifar_pruned_lateral --dataset cifar10 --data cifar
{prog} --model dgnet_cifar_r20 --model-kwargs edges=static router_bias=0 ...
{prog} --model aognet_12m --data imagenet --resume FILE --eval-only

Detectors can load OUTPUT/last.pth as weights. A folder of images has train/ and val/, each with one
folder per class.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import setup

if TYPE_CHECKING:
    from ..classification.processes import Processes

# As in gram_backbones.classification, which imports torch.
AMP_DTYPES = ("none", "bf16", "fp16")
DATASETS = ("folder", "cifar10", "cifar100")


def keyword(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE``, where VALUE is a Python literal or otherwise a string."""
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def default_output(model: str, model_kwargs: dict[str, Any]) -> Path:
    """``work_dirs/MODEL``, with the model's arguments after its name."""
    options = [f"{key}={value}" for key, value in sorted(model_kwargs.items())]
    return Path("work_dirs", "-".join([model, *options]).replace(os.sep, "_"))


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The model, its weights and the data."""
    parser.add_argument("--model", required=True, help="name of a model, see gram-backbones models")
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        action="extend",
        type=keyword,
        default=[],
        metavar="KEY=VALUE",
        help="further arguments of the model, such as edges=static",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="folder with train/ and val/, or folder of torchvision's CIFAR",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, default="folder", help="kind of data (default: folder)"
    )
    parser.add_argument("--download", action="store_true", help="download CIFAR if it is missing")
    parser.add_argument(
        "--cache",
        action="store_true",
        help="keep decoded images in memory, for small images; needs --workers 0",
    )
    parser.add_argument(
        "--weights", help="weights to start from; with its base network's, a DG-Net starts near it"
    )
    setup.add_accept_license(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The recipe and the changes to it, the machine, and the files of the run."""
    parser.add_argument(
        "--recipe", help="row of gram_backbones.classification.recipes (default: the model's)"
    )
    parser.add_argument("--epochs", type=int, help="length of the run, warm-up included")
    parser.add_argument(
        "--batch-size", type=int, help="total over all processes; the learning rate scales with it"
    )
    parser.add_argument(
        "--lr", type=float, help="learning rate at the end of the warm-up, not scaled"
    )
    parser.add_argument("--img-size", type=int, help="image height and width in pixels")
    parser.add_argument("--no-ema", action="store_true", help="no moving average of the weights")
    parser.add_argument(
        "--amp", choices=AMP_DTYPES, default="none", help="mixed precision (default: none)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="loader processes per training process; 0 loads in the training process",
    )
    setup.add_timeout(parser)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--output", help="output folder (default: work_dirs/MODEL-ARGUMENTS)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="resume from a checkpoint, by default OUTPUT/last.pth, if there is one",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate the weights of --resume, by default OUTPUT/last.pth",
    )


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The arguments, with the output folder and the checkpoint to resume from worked out."""
    parser = setup.parser_with_examples(__doc__, prog)
    add_inputs(parser)
    add_run_options(parser)
    args = parser.parse_args(argv)
    args.prog = parser.prog
    args.model_kwargs = dict(args.model_kwargs)
    args.output = Path(args.output or default_output(args.model, args.model_kwargs))
    if args.resume == "auto" or (args.eval_only and args.resume is None):
        found = any((args.output / name).is_file() for name in ("last.pth", "previous.pth"))
        args.resume = args.output / "last.pth" if found or args.eval_only else None
    return args


def prepare(args: argparse.Namespace, processes: Processes) -> Callable[[], object]:
    """The checked job of the command line, ready to be called."""
    import torch

    from ..classification.building import RunConfig
    from ..classification.data import open_datasets
    from ..classification.engine import Evaluation, Trainer
    from ..classification.processes import primary_first
    from ..classification.recipes import find_recipe
    from ..factory import create_model
    from ..lost_processes import TIMEOUT

    if args.cache and args.workers:
        raise ValueError(
            f"--cache needs --workers 0, not {args.workers}: each worker would keep its own copy"
        )
    with torch.device("meta"):
        preprocessing = create_model(args.model).variant.preprocessing
    recipe = find_recipe(args.model, args.dataset, args.recipe).with_changes(
        epochs=args.epochs, image_size=args.img_size, ema=not args.no_ema
    )
    train_set: Any  # with classes, as torchvision's have
    with primary_first(processes):
        train_set, val_set = open_datasets(
            args.data,
            args.dataset,
            recipe,
            preprocessing,
            download=args.download,
            cache=args.cache,
        )
    config = RunConfig(
        model=args.model,
        dataset=args.dataset,
        recipe=recipe,
        num_classes=len(train_set.classes),
        batch_size=recipe.batch if args.batch_size is None else args.batch_size,
        lr=args.lr,
        seed=args.seed,
        amp=args.amp,
        model_kwargs=args.model_kwargs,
        weights=args.weights,
    )
    options = dict(workers=args.workers, timeout=(args.timeout or TIMEOUT) // 2)
    if args.eval_only:
        return Evaluation(config, val_set, args.resume, processes, **options).run
    data = (train_set, val_set)
    return Trainer(config, *data, args.output, processes, resume=args.resume, **options).run


def run(args: argparse.Namespace, processes: Processes) -> None:
    """Run the job; its errors end the process with a sentence."""
    from ..data import PictureError
    from ..distributed import ProcessesDifferError
    from ..divergence import DivergenceError
    from ..lost_processes import TIMEOUT, LostProcessError, naming_lost_processes

    try:
        with naming_lost_processes():
            job = prepare(args, processes)
    except (LostProcessError, MemoryError, OSError, ProcessesDifferError, ValueError) as error:
        sys.exit(f"{args.prog}: {error}")
    try:
        with naming_lost_processes((args.timeout or TIMEOUT) // 2):
            job()
    except (DivergenceError, LostProcessError, OSError, PictureError) as error:
        sys.exit(f"{args.prog}: {error}")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train or evaluate."""
    args = parse_args(argv, prog)
    setup.start(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    import torch

    from ..classification.processes import start_processes
    from ..lost_processes import TIMEOUT

    torch.backends.cudnn.benchmark = True  # all batches of a run have one shape
    with start_processes(args.timeout or TIMEOUT) as processes:
        run(args, processes)
