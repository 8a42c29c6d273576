#!/usr/bin/env python
"""Top-1 accuracy of a trained classifier under one-step FGSM (AOGNet paper, Table 2).

tools/eval_robustness.py aognet_12m imagenet/val --checkpoint aognet_12m.pth --epsilons 0.1 0.3

Epsilon is the size of the step in every pixel and channel (L-infinity) on images in [0, 1], before
normalisation.
"""

import argparse
import sys

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader
from tqdm import tqdm

from gram_backbones import list_models
from gram_backbones.classification.robustness import (
    check_epsilons,
    load_classifier,
    open_image_folder,
    top1_under_fgsm,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list_models(), metavar="MODEL", help="name of the model")
    parser.add_argument("images", help="folder with one folder of images per class")
    parser.add_argument("--checkpoint", required=True, help="weight file of the trained classifier")
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        check_epsilons(args.epsilons)
        images = open_image_folder(args.images, args.size, args.resize)
        model = load_classifier(args.model, args.checkpoint, len(images.classes))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"eval_robustness.py: {type(error).__name__}: {error}")
    batches = DataLoader(images, args.batch_size, num_workers=args.workers)
    result = top1_under_fgsm(
        model,
        model.variant.preprocessing,
        tqdm(batches, unit="batch"),
        args.epsilons,
        args.device,
    )
    rows = [["clean", result.clean], *zip(args.epsilons, result.attacked)]
    rows = [[epsilon, f"{100 * accuracy:.2f}"] for epsilon, accuracy in rows]
    print(f"{args.model} on {result.images} images of {len(images.classes)} classes")
    print(tabulate(rows, ["epsilon", "top-1, %"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
