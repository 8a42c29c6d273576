#!/usr/bin/env python
"""Convert a weight file to another naming or layout, with a record of where it is from.

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
    parser.add_argument("source", help="file, or https:// address with a hash")
    parser.add_argument("target", help="ends with .safetensors, .pth, .pt or .pkl")
    parser.add_argument("--model", required=True, choices=list_models(), metavar="NAME")
    parser.add_argument("--names", default="own", choices=NAMINGS, help="default: own")
    parser.add_argument("--layout", default="backbone", choices=LAYOUTS, help="default: backbone")
    parser.add_argument("--licence", help="of the weights, for the record")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="run whatever a pickle asks for; for files only that you trust with this machine",
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
        )
    except (OSError, ValueError) as error:
        sys.exit(f"convert_weights.py: {error}")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
