"""What models and detectors cost, as a Markdown table; beside the papers' figures where there are.

{prog} aognet_12m dgnet_r50                            classifiers by name; all of them by default
{prog} dgnet_r50 --size 800x1333                       as the backbone of DG-Net's Table 2
{prog} faster_rcnn_dgnet_r50_fpn_1x --by stage         a config of Detectron2 or MMDetection
{prog} aognet_4m --by node
{prog} --chart chart.png                               among torchvision's networks
{prog} dgnet_cifar_r20 --weights last.pth --images photographs

Classifiers are counted at 224 pixels with 1000 classes, CIFAR's at 32 pixels with 10, detectors at
800 × 1333 padded to 800 × 1344. Nothing is computed: shapes are enough.

conv GFLOPs     multiply-adds of convolutions, what papers print; paper: its figures and how far the
                counts are from them
GFLOPs          multiply-adds of linear layers and other matrix products too
activations     numbers that these put out, in millions
training, MB    a training step in float32: 4 bytes for every parameter, 8 more for its gradient and
                SGD's momentum if it is not frozen, and what autograd keeps for --batch images

Of a detector, what runs once per image is counted: RoI heads depend on the proposals.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..config_folders import find_config, list_configs
from . import setup

if TYPE_CHECKING:
    from ..analysis.cost_table import Row


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="names of models, or configs: files, or names of shipped ones (default: all models)",
    )
    parser.add_argument("--size", type=_size, help="pixels: one number, or HEIGHTxWIDTH")
    parser.add_argument("--by", choices=("stage", "node"), help="a row for every part too")
    parser.add_argument("--batch", type=int, default=1, help="images of a training step")
    parser.add_argument(
        "--fvcore",
        action="store_true",
        help="also what fvcore counts of classifiers, norms included; computes an image",
    )
    parser.add_argument("--chart", metavar="FILE", help="draw classifiers among torchvision's")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="files or folders: what DG-Nets compute for these, without closed edges",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="trained weights of the model, for --images"
    )
    parser.add_argument("--features", action="store_true", help="features instead of counts")
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(size):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; allowed are 224 or 800x1333")
    return size


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row for every model and detector, and what images cost a DG-Net."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; it must be at least 1")
    if args.weights and not args.images:
        parser.error("--weights is for --images, which is not given")
    if args.images and len(args.models) != 1:
        parser.error(f"--images is for one model, and {len(args.models)} are named")
    setup.start()
    from ..registry import list_models

    known = list_models()
    configs = [name for name in args.models if name not in known and _is_config(name)]
    for name in args.models:
        if name not in configs:
            setup.check_model(parser, name)
    for option in ("features", "images", "chart", "fvcore"):
        if configs and getattr(args, option):
            parser.error(f"--{option} is for models by name, not for the config {configs[0]!r}")
    if args.features:
        from ..analysis.cost_table import feature_table

        return print(feature_table(args.models))
    try:
        over_images = _prepare_images(args) if args.images else None
        _print_table(args, args.models or known, configs)
        if over_images:
            print(over_images())
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError for wrong files, keys and values.
        parser.error(str(error.args[-1] if isinstance(error, KeyError) else error))


def _is_config(name: str) -> bool:
    return name.endswith((".py", ".yaml", ".yml")) or name in list_configs()


def _print_table(args: argparse.Namespace, names: Sequence[str], configs: Sequence[str]) -> None:
    """Print every row as soon as it is counted; then draw the chart."""
    from ..analysis.cost_table import HEADS, IMAGENET_SIZE, chart_families, default_size
    from ..analysis.published import check_chart, draw_chart

    if args.chart:
        if not any((args.size or default_size(name)) == IMAGENET_SIZE for name in names):
            raise ValueError("--chart is for ImageNet's models at 224 pixels, and none is named")
        check_chart(args.chart)
    heads = [*HEADS, *(["fvcore GFLOPs"] if args.fvcore else []), "at"]
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}", flush=True)
    drawn = []
    for name in names:
        for index, row in enumerate(_rows(name, args, name in configs)):
            cells = [*row.cells(args.batch), f"{row.size[0]}×{row.size[1]}"]
            if args.fvcore:
                cells.insert(-1, "–" if index else _fvcore_cell(name, row.size))
            print(f"| {' | '.join(cells)} |", flush=True)
            if not index and row.size == IMAGENET_SIZE:
                drawn.append(row)
    if args.chart:
        draw_chart(chart_families(drawn), args.chart)
        print(f"The chart is in {args.chart}", file=sys.stderr)


def _rows(name: str, args: argparse.Namespace, is_config: bool) -> Iterator[Row]:
    from ..analysis.cost_table import detector_rows, model_rows

    if not is_config:
        return model_rows(name, args.size, args.by)
    path = find_config(name)
    build_trunk: Any
    if path.suffix == ".py":
        from ..mmdet.trunk import build_trunk
    else:
        from ..d2.trunk import build_trunk
    detector, trunk, parts = build_trunk(str(path))
    modules = {part: [module] for part, module in parts.items()}
    return detector_rows(name, detector, trunk, modules, args.size, args.by)


def _fvcore_cell(name: str, size: tuple[int, int]) -> str:
    from ..analysis.cost import fvcore_flops, num_classes
    from ..analysis.cost_table import short_number
    from ..registry import build_model

    return short_number(fvcore_flops(build_model(name, num_classes=num_classes(name)), size) / 1e9)


def _prepare_images(args: argparse.Namespace) -> Callable[[], str]:
    """Check images, model and weights; what is returned computes, and says what was found."""
    from tqdm import tqdm

    from ..analysis.cost import flops_over_images, num_classes, open_image
    from ..analysis.cost_table import default_size
    from ..dgnet.connectivity import dynamic_stages
    from ..factory import create_model
    from ..predictions.sources import find_sources

    sources = find_sources(args.images)
    if others := [source.path for source in sources if source.kind != "image"]:
        raise ValueError(f"--images takes images, and {others[0]!r} is none")
    name, images = args.models[0], [source.path for source in sources]
    size = args.size or default_size(name)
    model = create_model(name, num_classes=num_classes(name), weights=args.weights)
    if not dynamic_stages(model):
        raise ValueError(f"--images is for DG-Nets; no edge of {name} depends on the image")
    if not args.weights:
        print("No --weights: the routers are fresh and close hardly any edge", file=sys.stderr)

    def run() -> str:
        opened = (open_image(path, model.variant.preprocessing, size) for path in images)
        bar = tqdm(opened, name, len(images), unit="image", disable=None)
        found = flops_over_images(model, bar)
        whole, mean, least, most = (
            f"{flops / 1e9:.4g} G"
            for flops in (found.every_edge, found.mean, min(found.flops), max(found.flops))
        )
        return (
            f"{name} over {len(images)} images: convolutions {whole} with every edge, {mean} "
            f"expected, from {least} to {most}; {found.closed_edges:.1%} of the edges and "
            f"{found.closed_blocks:.1%} of the blocks closed"
        )

    return run
