#!/usr/bin/env python
"""Write a network as ONNX or torch.export, with any batch and image size, and check the file.

tools/export.py aognet_12m aognet_12m.onnx --weights best.pth
tools/export.py dgnet_r50 dgnet_r50.pt2 --num-classes 1000 --deploy
"""

import argparse
import sys

from gram_backbones import create_model, list_models
from gram_backbones.exporting import TOLERANCE, export_network
from gram_backbones.weights.files import WeightError

if __name__ == "__main__":
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("model", choices=list_models(), metavar="MODEL", help="its name")
    parser.add_argument("output", help="FILE.onnx or FILE.pt2")
    parser.add_argument("--weights", metavar="FILE", help="default: fresh weights")
    parser.add_argument("--num-classes", type=int, help="of a classifier; default: feature maps")
    parser.add_argument("--deploy", action="store_true", help="with norms folded in")
    help = "compile a .pt2 for this machine with AOTInductor"
    parser.add_argument("--aot-inductor", action="store_true", help=help)
    args = parser.parse_args()
    kind = {"num_classes": args.num_classes} if args.num_classes else {"features_only": True}
    try:
        model = create_model(args.model, weights=args.weights, **kind)
        model = model.deploy() if args.deploy else model
        error = export_network(model, args.output, aot_inductor=args.aot_inductor)
    except (FileNotFoundError, ImportError, ValueError, WeightError) as problem:
        sys.exit(f"export.py: {problem}")
    print(f"{args.output}: differs from the network by {error:.1e}, allowed {TOLERANCE:.0e}")
