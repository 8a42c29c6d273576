#!/usr/bin/env python
"""Train or evaluate a classifier on a folder of images or on CIFAR, with the papers' recipes.

tools/train_classifier.py --model aognet_12m --data imagenet --output work_dirs/aognet_12m
torchrun --nproc-per-node 8 tools/train_classifier.py --model dgnet_r50 --data imagenet
tools/train_classifier.py --model aognet_cifar_pruned_lateral --dataset cifar10 --data cifar
tools/train_classifier.py --model dgnet_cifar_r20 --model-kwargs edges=static router_bias=0 ...
tools/train_classifier.py --model aognet_12m --data imagenet --resume FILE --eval-only

Detectors can load OUTPUT/last.pth as weights. A folder of images has train/ and val/, each with one
folder per class.
"""

import argparse
import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gram_backbones import create_model
from gram_backbones.classification.building import AMP_DTYPES, RunConfig
from gram_backbones.classification.data import DATASETS, open_datasets
from gram_backbones.classification.engine import Evaluation, Trainer
from gram_backbones.classification.processes import Processes, primary_first, start_processes
from gram_backbones.classification.recipes import RECIPES, find_recipe
from gram_backbones.data import PictureError


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
    parser.add_argument(
        "--model", required=True, help="name of a model, see python -m gram_backbones models"
    )
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


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The recipe and the changes to it, the machine, and the files of the run."""
    parser.add_argument("--recipe", help=f"one of {', '.join(RECIPES)} (default: the model's)")
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
        "--amp", choices=list(AMP_DTYPES), default="none", help="mixed precision (default: none)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="loader processes per training process; 0 loads in the training process",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--output", help="output folder (default: work_dirs/MODEL-ARGUMENTS)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="resume from a checkpoint, by default OUTPUT/last.pth",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate the weights of --resume, by default OUTPUT/last.pth",
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_inputs(parser)
    add_run_options(parser)
    args = parser.parse_args()
    args.model_kwargs = dict(args.model_kwargs)
    args.output = Path(args.output or default_output(args.model, args.model_kwargs))
    if args.resume == "auto" or (args.eval_only and args.resume is None):
        args.resume = args.output / "last.pth"
    return args


def prepare(args: argparse.Namespace, processes: Processes) -> Callable[[], object]:
    """The checked job of the command line, ready to be called."""
    if args.cache and args.workers:
        raise ValueError(
            f"--cache needs --workers 0, not {args.workers}: each worker would keep its own copy"
        )
    with torch.device("meta"):
        preprocessing = create_model(args.model).variant.preprocessing
    recipe = find_recipe(args.model, args.dataset, args.recipe).with_changes(
        epochs=args.epochs, image_size=args.img_size, ema=not args.no_ema
    )
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
    if args.eval_only:
        return Evaluation(config, val_set, args.resume, processes, workers=args.workers).run
    data = (train_set, val_set)
    options = dict(workers=args.workers, resume=args.resume)
    return Trainer(config, *data, args.output, processes, **options).run


def run(args: argparse.Namespace, processes: Processes) -> None:
    try:
        job = prepare(args, processes)
    except (OSError, ValueError) as error:
        sys.exit(f"train_classifier.py: {error}")
    try:
        job()
    except (FloatingPointError, PictureError) as error:
        sys.exit(f"train_classifier.py: {error}")


def main() -> None:
    args = parse_args()
    torch.backends.cudnn.benchmark = True  # all batches of a run have one shape
    with start_processes() as processes:
        run(args, processes)


if __name__ == "__main__":
    main()
