#!/usr/bin/env python
"""Count parameters and convolution FLOPs of every model, as a Markdown table."""

import torch
from tabulate import tabulate

from gram_backbones import create_model, list_models
from gram_backbones.flops import count_conv_flops, count_parameters

if __name__ == "__main__":
    rows = []
    for name in list_models():
        with torch.device("meta"):  # counting needs no weights
            model = create_model(name)
        flops = count_conv_flops(model)
        rows.append([f"`{name}`", f"{count_parameters(model):,}", f"{flops / 1e9:.3f}"])
    print(tabulate(rows, ["model", "parameters", "conv GFLOPs at 224²"], tablefmt="github"))
