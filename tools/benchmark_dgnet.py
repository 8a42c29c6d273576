#!/usr/bin/env python
"""Latency of DG-ResNet-50 against torchvision's ResNet-50, alternating in one process.

Blocks are removed by thresholds: a node whose τ is above 1 gets no input and is not computed.
"""

import argparse
import statistics
import time

import torch
from tabulate import tabulate
from torchvision.models import resnet50

from gram_backbones import create_model, load_weights
from gram_backbones.flops import count_conv_flops

# (stage, node) pairs to remove, numbered as in the docs: stage 2 is res4.
REMOVALS = {
    0: [],
    2: [(2, 5), (2, 6)],
    4: [(0, 3), (1, 4), (2, 6), (3, 3)],
    8: [(0, 2), (0, 3), (1, 3), (1, 4), (2, 5), (2, 6), (3, 2), (3, 3)],
}


def seconds(network: torch.nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    network(image)
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=25, help="number of alternating pairs (default: 25)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(512, 672),
        help="image height and width (default: 512 672)",
    )
    args = parser.parse_args()
    size = tuple(args.size)
    torch.manual_seed(0)
    base = resnet50().eval()
    image = torch.randn(1, 3, *size)
    whole = count_conv_flops(base, size)
    rows = []
    for count, removed in REMOVALS.items():
        model = create_model("dgnet_r50").eval()
        load_weights(model, base.state_dict())
        with torch.no_grad():
            for stage, node in removed:
                model.graphs[str(stage)].thresholds[node - 1] = 2.0
        share = 1 - count_conv_flops(model, size) / whole
        with torch.inference_mode():
            for network in (base, model) * 5:  # warm up the allocator
                seconds(network, image)
            pairs = [(seconds(base, image), seconds(model, image)) for _ in range(args.pairs)]
        ratios = sorted(b / a for a, b in pairs)
        quarter = len(ratios) // 4
        rows.append(
            [
                count,
                f"{share:.1%}",
                f"{statistics.median(a for a, _ in pairs) * 1e3:.0f}",
                f"{statistics.median(b for _, b in pairs) * 1e3:.0f}",
                f"{statistics.median(ratios):.3f}",
                f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}",
                f"{1.15 - 0.8 * share:.3f}",
            ]
        )
    headers = ["blocks removed", "FLOPs removed", "ResNet-50, ms", "DG-Net, ms", "ratio"]
    headers += ["middle half of the ratios", "bound"]
    print(tabulate(rows, headers, tablefmt="github"))
