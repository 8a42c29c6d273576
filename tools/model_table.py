#!/usr/bin/env python
"""Count parameters and convolution FLOPs of every model, as a Markdown table.

CIFAR's models are counted at 32 pixels with 10 classes, all others at 224 pixels with 1000 classes.
"""

from tabulate import tabulate

from gram_backbones import create_model, list_models
from gram_backbones.flops import count_conv_flops, count_parameters

if __name__ == "__main__":
    rows = []
    for name in list_models():
        classes, size = (10, 32) if "cifar" in name else (1000, 224)
        model = create_model(name, num_classes=classes)
        flops = count_conv_flops(model, size)
        rows.append([f"`{name}`", f"{count_parameters(model):,}", f"{flops / 1e9:.3f}", f"{size}²"])
    print(tabulate(rows, ["model", "parameters", "conv GFLOPs", "at"], tablefmt="github"))
