"""Count parameters and convolution FLOPs of models, as a Markdown table.

CIFAR's models are counted at 32 pixels with 10 classes, all others at 224 pixels with 1000 classes.
All models take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row for every model."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all models)")
    parser.add_argument("--size", type=int, help="image height and width in pixels")
    args = parser.parse_args(argv)
    setup.start()
    for name in args.models:
        setup.check_model(parser, name)
    from ..flops import count_conv_flops, count_parameters
    from ..registry import build_model, list_models

    print("| model | parameters | conv GFLOPs | at |\n|---|---:|---:|---:|")
    for name in args.models or list_models():
        classes, size = (10, 32) if "cifar" in name else (1000, 224)
        size = args.size or size
        model = build_model(name, num_classes=classes)
        flops = count_conv_flops(model, size)
        row = [f"`{name}`", f"{count_parameters(model):,}", f"{flops / 1e9:.3f}", f"{size}²"]
        print(f"| {' | '.join(row)} |", flush=True)
