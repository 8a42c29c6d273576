"""Count parameters and convolution FLOPs of models, as a Markdown table.

CIFAR's models are counted at 32 pixels with 10 classes, all others at 224 pixels with 1000 classes.
All models take minutes. With --features: channels and strides of the features, and weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row for every model."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all models)")
    parser.add_argument("--size", type=int, help="image height and width in pixels")
    parser.add_argument("--features", action="store_true", help="features instead of counts")
    args = parser.parse_args(argv)
    setup.start()
    for name in args.models:
        setup.check_model(parser, name)
    if args.features:
        return print(feature_table(args.models))
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


def feature_table(models: Sequence[str] = ()) -> str:
    """Channels and strides of models, and their weights; each family's models with weights first.

    Args:
        models: names; none for all.
    """
    from ..registry import feature_info, list_models
    from ..weights.records import list_weights

    rows = []
    for name in models or list_models():
        tags = [f"`{full.removeprefix(f'{name}.')}`" for full in list_weights(f"{name}.*")]
        infos = [f"{info.channels} / {info.stride}" for info in feature_info(name).values()]
        infos += ["–"] * (5 - len(infos))
        rows.append([f"`{name}`", *infos, ", ".join(tags) or "–"])
    rows.sort(key=lambda row: (row[0].partition("_")[0], row[-1] == "–"))
    heads = ["model", "stem", "res2", "res3", "res4", "res5", "weights"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
