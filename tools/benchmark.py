#!/usr/bin/env python
"""Speed of networks side by side: they alternate in one process, after a warm-up.

tools/benchmark.py                                          AOGNets against torchvision's ResNets
tools/benchmark.py --models dgnet_r50 resnet50 --modes plain deployed --size 800 1088
tools/benchmark.py --train --models aognet_12m --size 512 672
tools/benchmark.py --skipping                               DG-ResNet-50 with blocks left out
tools/benchmark.py --growth                                 against image size, N and blocks

Modes: plain is module after module with norms in evaluation mode; frozen is what detectors build,
with FrozenBN; channels_last is plain on channels-last weights and images; deployed is `deploy()`,
for a ResNet folded norms and channels last; compiled is torch.compile of deployed, with freezing.
"""

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from gram_backbones.cli import setup
from gram_backbones.threads import keep_kernels

MODES = ("plain", "frozen", "channels_last", "deployed", "compiled")
RESNETS = ("resnet50", "resnet101")


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    default = ["aognet_12m_released", "aognet_40m_released", *RESNETS]
    parser.add_argument("--models", nargs="+", default=default, metavar="MODEL",
                        help="ours, resnet50 and resnet101")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:4]))
    parser.add_argument("--train", action="store_true", help="training steps with fixed norms")
    parser.add_argument("--skipping", action="store_true", help="DG-ResNet-50 against ResNet-50")
    parser.add_argument("--growth", action="store_true", help="AOGNet-12M against its size")
    parser.add_argument("--deployed", action="store_true", help="with --skipping: both deployed")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 672), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", help="default: cuda if there is a GPU, otherwise cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows too")
    args = parser.parse_args()
    for name in args.models:
        if name not in RESNETS:
            setup.check_model(parser, name)
    return args


if __name__ == "__main__":
    args = parse_args()
    keep_kernels(1 << 15)  # of all contestants: alone, each finds its own again
    # Here and not above: --help answers at once.
    import torch
    from benchmarking import compare, compare_growth, compare_skipping, draw

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    image = torch.randn(args.batch, 3, *args.size).to(args.device, dtype)
    if args.growth:
        rows = compare_growth(args)
    else:
        rows = (compare_skipping if args.skipping else compare)(args, image)
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else "synchronised"
    shape = " × ".join(map(str, image.shape))
    print(f"torch {torch.__version__}, {args.device}, {threads}, {shape}, {args.dtype}\n")
    print(tabulate(rows, "keys", tablefmt="github", floatfmt=".3g"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.picture:
        draw(rows, args.picture)
