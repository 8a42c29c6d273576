"""Count the units of a layer that detect a concept (network dissection; AOGNet paper, Figure 6).

{prog} val=annotations.json:images/ --model aognet_12m dgnet_r50 --weights a.pth d.pth
{prog} val=annotations.json:images/ --model aognet_12m --weights a.pth --layer res4

DATA is a data set in COCO's format with masks; its categories are the concepts. Networks of any
width are compared at the same quantile of their units' activations. The output folder gets
concepts.png, a picture of the best units of each network, units.csv and networks.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import setup

if TYPE_CHECKING:
    from ..analysis.dissection import Dissection
    from ..analysis.figures import Figure
    from ..data import Dataset

_LAYER = "a feature such as res4, or the name of a module; one, or one per model (default: res5)"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("data", metavar="DATA", help="name=annotations.json:images/")
    parser.add_argument(
        "--model", nargs="+", required=True, help="names, see gram-backbones models"
    )
    parser.add_argument(
        "--weights", nargs="+", metavar="FILE", help="one per model (default: fresh weights)"
    )
    parser.add_argument("--layer", nargs="+", default=["res5"], help=_LAYER)
    parser.add_argument(
        "--quantile",
        type=float,
        default=0.005,
        help="share of a unit's activations above its threshold (default: 0.005)",
    )
    parser.add_argument(
        "--iou", type=float, default=0.04, help="above which a unit detects (default: 0.04)"
    )
    parser.add_argument(
        "--size", type=int, default=224, help="shorter side of the images in pixels (default: 224)"
    )
    parser.add_argument("--output", default="dissection", help="folder (default: dissection)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Dissect every network, and write tables and figures."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    number = len(args.model)
    weights = args.weights or [None] * number
    layers = args.layer * number if len(args.layer) == 1 else args.layer
    for option, values in (("--weights", weights), ("--layer", layers)):
        if len(values) != number:
            parser.error(f"{option} has {len(values)} values for {number} models")
    for option, value in (("--quantile", args.quantile), ("--iou", args.iou)):
        if not 0 < value < 1:
            parser.error(f"{option} is {value}; it must be between 0 and 1")
    if args.size < 1:
        parser.error(f"--size is {args.size}; it must be at least 1")
    setup.start()
    try:
        from ..analysis.dissection_files import network_labels, write_dissections
        from ..data import read_dataset

        dataset = read_dataset(args.data)
        jobs = zip(args.model, weights, layers)
        found = [_dissected(*job, dataset, args) for job in jobs]
        names = network_labels(args.model, layers)
        print(write_dissections(args.output, dict(zip(names, found))))
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Figures and tables are in {args.output}")


def _dissected(
    name: str, weights: str | None, layer: str, dataset: Dataset, args: argparse.Namespace
) -> tuple[Dissection, Figure | None]:
    """A network's dissection, and the picture of its best units if any detects a concept."""
    import torch
    from tqdm import tqdm

    from ..analysis.dissection import dissect, find_layer
    from ..analysis.dissection_figures import draw_units
    from ..analysis.masks import MaskedPictures
    from ..factory import create_model

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = create_model(name, features_only=True, weights=weights).to(device)
    module = find_layer(model, layer)
    pictures = MaskedPictures(dataset, args.size, model.variant.preprocessing, device)
    text = f"{layer} of {name} ({weights or 'fresh weights, as random as they start'})"
    print(f"{text}: {len(pictures)} images", flush=True)
    found = dissect(
        model,
        module,
        lambda: tqdm(pictures, name, unit="image", disable=None),
        dataset.classes,
        share=args.quantile,
        min_iou=args.iou,
    )
    drawn = draw_units(found, model, module, pictures, text) if found.unique_concepts else None
    return found, drawn
