"""Top-1 accuracy of a trained classifier under one-step FGSM (AOGNet paper, Table 2).

{prog} aognet_12m imagenet/val --checkpoint aognet_12m.pth --epsilons 0.1 0.3

Epsilon is the size of the step in every pixel and channel (L-infinity) on images in [0, 1], before
normalisation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import setup


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("images", help="folder with one folder of images per class")
    parser.add_argument("--checkpoint", required=True, help="weight file of the trained classifier")
    setup.add_accept_license(parser)
    parser.add_argument(
        "--epsilons",
        type=float,
        nargs="+",
        default=[0.1, 0.3],
        help="step sizes (default: 0.1 0.3, as in Table 2)",
    )
    parser.add_argument("--size", type=int, default=224, help="crop size in pixels (default: 224)")
    parser.add_argument(
        "--resize",
        type=int,
        help="shorter side in pixels before the crop (default: size / 0.875)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: 2)")
    parser.add_argument("--device", help="default: cuda if there is a GPU, otherwise cpu")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluate, and print a table."""
    parser = make_parser(prog)
    args = setup.parse_model_arguments(parser, argv)
    import torch
    from tabulate import tabulate
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from ..classification.robustness import (
        check_epsilons,
        load_classifier,
        open_image_folder,
        top1_under_fgsm,
    )
    from ..registry import find_variant

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_epsilons(args.epsilons)
        images = open_image_folder(args.images, args.size, args.resize)
        model = load_classifier(args.model, args.checkpoint, len(images.classes))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{parser.prog}: {type(error).__name__}: {error}")
    batches = DataLoader(images, args.batch_size, num_workers=args.workers)
    result = top1_under_fgsm(
        model,
        find_variant(args.model).preprocessing,
        tqdm(batches, unit="batch"),
        args.epsilons,
        device,
    )
    pairs = zip(["clean", *args.epsilons], [result.clean, *result.attacked])
    rows = [[epsilon, f"{100 * accuracy:.2f}"] for epsilon, accuracy in pairs]
    print(f"{args.model} on {result.images} images of {len(images.classes)} classes")
    print(tabulate(rows, ["epsilon", "top-1, %"], tablefmt="github", disable_numparse=True))
