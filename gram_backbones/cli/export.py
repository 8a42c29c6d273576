"""Write a network as ONNX or torch.export, with any batch and image size, and check the file.

{prog} aognet_12m aognet_12m.onnx --weights best.pth
{prog} dgnet_r50 dgnet_r50.pt2 --num-classes 1000 --deploy
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import setup

NORMS = ("BN", "SyncBN", "FrozenBN", "GN")  # as in gram_backbones.layers, which imports torch


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("model", metavar="MODEL", help="its name")
    parser.add_argument("output", help="FILE.onnx or FILE.pt2")
    parser.add_argument("--weights", metavar="FILE", help="default: fresh weights")
    setup.add_accept_license(parser)
    parser.add_argument("--num-classes", type=int, help="of a classifier; default: feature maps")
    parser.add_argument(
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        default=32,
        help="stride from which later stages are dilated instead; 32: none is (default: 32)",
    )
    parser.add_argument(
        "--norm", choices=NORMS, default="BN", help="norm of the network (default: BN)"
    )
    parser.add_argument("--deploy", action="store_true", help="with norms folded in")
    help = "compile a .pt2 for this machine with AOTInductor"
    parser.add_argument("--aot-inductor", action="store_true", help=help)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Export, and print how far the file's outputs are from the network's."""
    parser = make_parser(prog)
    args = setup.parse_model_arguments(parser, argv)
    from ..exporting import TOLERANCE, export_network
    from ..factory import create_model
    from ..weights.files import WeightError

    options = {"num_classes": args.num_classes} if args.num_classes else {"features_only": True}
    options.update(norm=args.norm, output_stride=args.output_stride)
    try:
        model = create_model(args.model, weights=args.weights, **options)
        model = model.deploy() if args.deploy else model
        error = export_network(model, args.output, aot_inductor=args.aot_inductor)
    except (FileNotFoundError, ImportError, ValueError, WeightError) as problem:
        sys.exit(f"{parser.prog}: {problem}")
    print(f"{args.output}: differs from the network by {error:.1e}, allowed {TOLERANCE:.0e}")
