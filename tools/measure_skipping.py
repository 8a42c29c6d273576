#!/usr/bin/env python
"""Measure what a trained DG-Net skips on single images: edges, blocks and FLOPs.

tools/measure_skipping.py work_dirs/evidence/dynamic-seed0/last.pth CIFAR/val

Prints the thresholds τ of each stage, and for each edge the share of images in which it is open and
its mean weight over all images. Then prints the share of the convolutions' multiply-adds that eager
inference skipped per image.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from torch import Tensor

    from gram_backbones.dgnet.graph import DynamicGraph


def print_stage(name: str, graph: DynamicGraph, matrices: Tensor) -> None:
    """One row per receiving node, one column per source."""
    shares, means = matrices.ne(0).double().mean(0), matrices.mean(0)
    n = graph.n_blocks
    nodes = ["input", *(f"block {i}" for i in range(1, n + 1)), "output"]
    rows = [
        [
            nodes[j],
            f"{graph.thresholds[j - 1]:.2f}",
            *(f"{shares[j, i]:.0%}, {means[j, i]:.2f}" for i in range(j)),
        ]
        for j in range(1, n + 2)
    ]
    print(f"\n{name}: open in, mean weight\n")
    print(tabulate(rows, ["into", "τ", *(f"from {node}" for node in nodes[:-1])], "github"))


def measure(checkpoint: Path, images: Path, count: int) -> None:
    # Here and not above: --help answers at once.
    import torch

    from gram_backbones import record_connectivity
    from gram_backbones.classification.building import build_classifier
    from gram_backbones.classification.checkpoint import read_checkpoint
    from gram_backbones.classification.data import build_transform, open_folder
    from gram_backbones.classification.recipes import find_recipe
    from gram_backbones.dgnet.connectivity import dynamic_stages, summarise
    from gram_backbones.dgnet.graph import training_gate
    from gram_backbones.flops import count_conv_flops
    from gram_backbones.weights.loading import load_classifier_weights

    content = read_checkpoint(checkpoint)
    if "training" not in content:
        raise ValueError(f"{checkpoint} holds only weights; give a checkpoint of a training run")
    config = content["training"]["config"]
    recipe = find_recipe(config["model"], config["dataset"])
    classes, kwargs = config["num_classes"], config["model_kwargs"]
    model = build_classifier(config["model"], classes, recipe, kwargs).eval()
    load_classifier_weights(model, checkpoint)
    stages = dynamic_stages(model)
    if not stages:
        raise ValueError(f"{checkpoint} has no dynamic edges: {config['model']}, {kwargs}")
    centre = build_transform(recipe, model.variant.preprocessing, training=False)
    data = open_folder(images, centre)
    chosen = random.Random(0).sample(range(len(data)), min(count, len(data)))
    with training_gate(model):  # nothing is skipped
        whole = count_conv_flops(model, recipe.image_size)
    saved = []
    with record_connectivity(model) as records:
        for index in chosen:
            image, _ = data[index]
            saved.append(1 - count_conv_flops(model, image[None]) / whole)
    records = {name: records[name] for name in stages}
    for name in stages:
        print_stage(name, model.get_submodule(name), torch.cat(records[name]))
    shares = summarise(records)
    print(
        f"\n{len(saved)} images: {shares['closed_edges']:.1%} of the edges closed, "
        f"{shares['closed_blocks']:.1%} of the blocks left out; FLOPs saved per image: mean "
        f"{statistics.mean(saved):.1%}, least {min(saved):.1%}, most {max(saved):.1%} "
        f"of {whole / 1e6:.2f} M"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of tools/train_classifier.py")
    parser.add_argument("images", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--count", type=int, default=1000, help="number of images (default: 1000)")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count is {args.count}; it must be at least 1")
    try:
        measure(args.checkpoint, args.images, args.count)
    except (OSError, ValueError) as error:
        sys.exit(f"measure_skipping.py: {error}")
