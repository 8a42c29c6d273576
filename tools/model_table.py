#!/usr/bin/env python
"""Count parameters and convolution FLOPs of every model, as a Markdown table.

CIFAR's models are counted at 32 pixels with 10 classes, all others at 224 pixels with 1000 classes.
With --features, the table of docs/models.md: channels and strides of the features, and weights.
"""

import argparse

from tabulate import tabulate

from gram_backbones import create_model, feature_info, list_models, list_weights
from gram_backbones.flops import count_conv_flops, count_parameters


def counts() -> str:
    rows = []
    for name in list_models():
        classes, size = (10, 32) if "cifar" in name else (1000, 224)
        model = create_model(name, num_classes=classes)
        flops = count_conv_flops(model, size)
        rows.append([f"`{name}`", f"{count_parameters(model):,}", f"{flops / 1e9:.3f}", f"{size}²"])
    return tabulate(rows, ["model", "parameters", "conv GFLOPs", "at"], tablefmt="github")


def features() -> str:
    """Each family's models with weights come first."""
    rows = []
    for name in list_models():
        tags = [f"`{full.removeprefix(f'{name}.')}`" for full in list_weights(f"{name}.*")]
        infos = [f"{info.channels} / {info.stride}" for info in feature_info(name).values()]
        infos += ["–"] * (5 - len(infos))
        rows.append([f"`{name}`", *infos, ", ".join(tags) or "–"])
    rows.sort(key=lambda row: (row[0].partition("_")[0], row[-1] == "–"))
    heads = ["model", "stem", "res2", "res3", "res4", "res5", "weights"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", action="store_true", help="features instead of counts")
    print(features() if parser.parse_args().features else counts())
