#!/usr/bin/env python
"""Convert a weight file to another naming or layout, with a record of its origin.

tools/convert_weights.py aognet_12m.pth aognet_12m.safetensors --model aognet_12m_released
tools/convert_weights.py aognet_12m.pth detector.pth --model aognet_12m_released --layout d2-c4
"""

import argparse
import json
import sys

from gram_backbones import list_models
from gram_backbones.weights.convert import LAYOUTS, NAMINGS, convert_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", help="weight file, https:// address with a hash, or tag of list-weights"
    )
    parser.add_argument("target", help="output file, .safetensors, .pth, .pt or .pkl")
    parser.add_argument(
        "--model", required=True, choices=list_models(), metavar="NAME", help="model of the file"
    )
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
    parser.add_argument(
        "--accept-license", metavar="NAME", help="licence that you accept, to download weights"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="let a pickle run arbitrary code; only for files that you trust",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        record = convert_weights(
            args.source,
            args.target,
            args.model,
            names=args.names,
            layout=args.layout,
            licence=args.licence,
            allow_pickle=args.allow_pickle,
            accept_license=args.accept_license,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"convert_weights.py: {error}")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
