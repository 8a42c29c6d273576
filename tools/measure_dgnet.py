#!/usr/bin/env python
"""Measure DG-Net on photographs: how close it starts to its base, and how padding moves its edges.

    tools/measure_dgnet.py start DATASETS/coco/val2017     deviation from the base against gradient
    tools/measure_dgnet.py padding DATASETS/coco/val2017   how far padding moves edge weights

No trained weights are used: the base network is torchvision's ResNet-50 with random weights, whose
BN statistics are first computed on the photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

import gram_backbones as gram

if TYPE_CHECKING:  # torch is imported when it is used: --help answers at once
    import torch

STARTS = [(chain, -side) for chain in (3, 5, 7, 9) for side in (3, 5, 7, 9)]


def load(folder: Path, count: int, side: int) -> torch.Tensor:
    """The first photographs of a folder as network inputs ``(count, 3, side, side)``."""
    import torch
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms.functional import center_crop, normalize, resize

    from gram_backbones.preprocessing import IMAGENET_RGB

    images = []
    for path in sorted(folder.glob("*.jpg"))[:count]:
        image = read_image(str(path), ImageReadMode.RGB)
        image = center_crop(resize(image, [side], antialias=True), [side, side]).float()
        images.append(normalize(image, IMAGENET_RGB.mean, IMAGENET_RGB.std))
    return torch.stack(images)


def settled_base(images: torch.Tensor) -> torch.nn.Module:
    """ResNet-50 with random weights and the photographs' BN statistics."""
    import torch
    from torchvision.models import resnet50

    torch.manual_seed(0)
    base = resnet50()
    for module in base.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # cumulative average
    with torch.no_grad():
        base.train()(images)
    return base.eval()


def smallest_gradient(matrix: torch.Tensor) -> float:
    """The smallest |dψ/dz| of a stage's edges at τ = 0, from its weights α (spec, derivatives)."""
    import torch

    alpha = matrix[:, torch.ones_like(matrix[0]).tril(-1).bool()].double()
    gate = torch.sigmoid(alpha)
    slope = (gate + alpha * gate * (1 - gate)) * alpha * (1 - alpha)
    return slope.abs().min().item()


def measure_start(images: torch.Tensor) -> None:
    import torch

    base = settled_base(images)
    reference = gram.create_model("dgnet_r50", features_only=True, edges="chain").eval()
    gram.load_weights(reference, base.state_dict())
    model = gram.create_model("dgnet_r50", features_only=True).eval()
    classifier = gram.create_model("dgnet_r50").eval()
    for network in (model, classifier):
        gram.load_weights(network, base.state_dict())
    rows = []
    with torch.no_grad():
        wanted = {**reference(images), "logits": base(images)}
        for start in STARTS:
            model.start_as_base(0.0, *start)
            classifier.start_as_base(0.0, *start)
            with gram.record_connectivity(model) as records:
                got = {**model(images), "logits": classifier(images)}
            errors = [((got[k] - wanted[k]).norm() / wanted[k].norm()).item() for k in wanted]
            slopes = [smallest_gradient(m[0]) for m in records.values()]
            rows.append([*start, *(f"{e:.3f}" for e in errors), f"{min(slopes):.1e}"])
    headers = ["chain bias", "side bias", *wanted, "smallest |dψ/dz|"]
    print(tabulate(rows, headers, tablefmt="github"))


def measure_padding(images: torch.Tensor) -> None:
    import torch

    # At the initial biases, whose edges the padding moves.
    model = gram.create_model("dgnet_r50", features_only=True, start_as_base=False).eval()
    gram.load_weights(model, settled_base(images).state_dict())
    side = images.shape[-1]
    rows = []
    for extra in (32, side // 2, side):
        padded = torch.nn.functional.pad(images, (0, extra, 0, extra))
        row = [f"{side} to {side + extra}"]
        for sizes in (None, [(side, side)] * len(images)):
            with torch.no_grad(), gram.record_connectivity(model) as records:
                model(images)
                model(padded, valid_sizes=sizes)
            moves = [(a - b).abs() for a, b in records.values()]
            edges = [torch.ones_like(move[0]).tril(-1).bool() for move in moves]
            moved = torch.cat([move[:, mask].flatten() for move, mask in zip(moves, edges)])
            row += [f"{moved.mean():.4f}", f"{moved.max():.3f}"]
        rows.append(row)
    headers = ["padding, pixels", "mean move, pooled over all", "largest"]
    headers += ["mean move, `valid_sizes`", "largest"]
    print(tabulate(rows, headers, tablefmt="github"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "padding"], help="what to measure")
    parser.add_argument("images", type=Path, help="folder of photographs (*.jpg)")
    parser.add_argument("--count", type=int, default=16, help="number of photographs (default: 16)")
    parser.add_argument("--side", type=int, default=224, help="image size in pixels (default: 224)")
    args = parser.parse_args()
    photographs = load(args.images, args.count, args.side)
    (measure_start if args.what == "start" else measure_padding)(photographs)
