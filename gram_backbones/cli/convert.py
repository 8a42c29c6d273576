"""Convert a weight file to another naming or layout, with a record of its origin.

{prog} aognet_12m.pth aognet_12m.safetensors --model aognet_12m_released
{prog} aognet_12m.pth detector.pth --model aognet_12m_released --layout d2-c4
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from . import setup

# As in gram_backbones.weights.convert, which imports torch.
LAYOUTS = ("backbone", "d2-fpn", "d2-c4", "mmdet", "mmdet-c4")
NAMINGS = ("own", "authors", "torchvision", "timm", "detectron2")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument(
        "source", help="weight file, https:// address with a hash, or tag of list-weights"
    )
    parser.add_argument("target", help="output file, .safetensors, .pth, .pt or .pkl")
    parser.add_argument("--model", required=True, metavar="NAME", help="model of the file")
    parser.add_argument(
        "--names", default="own", choices=NAMINGS, help="naming of the tensors (default: own)"
    )
    parser.add_argument(
        "--layout",
        default="backbone",
        choices=LAYOUTS,
        help="bare backbone, or a detector's names for plain Detectron2 or MMEngine "
        "(default: backbone)",
    )
    parser.add_argument("--licence", help="licence of the weights, for the record")
    setup.add_accept_license(parser)
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="let a pickle run arbitrary code; only for files that you trust",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Convert, and print the record."""
    parser = make_parser(prog)
    args = setup.parse_model_arguments(parser, argv)
    from ..weights.convert import convert_weights

    try:
        record = convert_weights(
            args.source,
            args.target,
            args.model,
            names=args.names,
            layout=args.layout,
            licence=args.licence,
            allow_pickle=args.allow_pickle,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(json.dumps(record, indent=2))
