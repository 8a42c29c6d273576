"""How a DG-Net connects images: edges, their graphs, and what is skipped (DG-Net paper, 6.5).

{prog} imagenet/val --model dgnet_r50 --weights dgnet_r50.pth
{prog} photographs/*.jpg --model dgnet_r50 --weights dgnet_r50.pth --thresholds 0.1 0.3
{prog} val=annotations.json:images/ --config mask_rcnn_dgnet_r50_fpn_1x --weights model_final.pth

IMAGES are files or folders of images, a folder with one folder of images per category, or a data
set in COCO's format. With --config, a detector of Detectron2 or MMDetection, the graphs are those
of its backbone on the inputs that the detector would get.

The output folder gets mean.png and std.png (Figures 5 and 6), graphs of the first images (Figure
7), skipped.png, and categories-STAGE.png where categories are known; and the numbers:
statistics.npz, edges.csv, skipped.csv, and images.csv with a row for every image and threshold.
Images that cannot be read are named and left out, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config_folders import find_config
from . import setup
from .classifier import keyword

if TYPE_CHECKING:
    from torch import Tensor

    from ..analysis.connectivity import Observation
    from ..analysis.pictures import Picture
    from ..dgnet import DGNet

_FILES = "graphs of the first N images (default: 4)"


class _Network(NamedTuple):
    """A DG-Net, and what makes its input and unpadded size of the path of an image."""

    model: DGNet
    prepare: Callable[[Path], tuple[Tensor, Any]]
    text: str


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="what to look at, see above")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--model", help="name of a DG-Net, see gram-backbones models")
    kind.add_argument("--config", help="of a detector: a file, or the name of a shipped config")
    parser.add_argument(
        "--weights", help="file of the network or detector (default for --model: fresh weights)"
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        type=keyword,
        default=[],
        metavar="KEY=VALUE",
        help="further arguments of --model that it was trained with, such as gate=soft",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="shorter side of the images in pixels, for --model (default: 224; CIFAR's models: 32)",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=[],
        metavar="T",
        help="run every image again with each of these in place of all learned thresholds",
    )
    parser.add_argument("--graphs", type=int, default=4, metavar="N", help=_FILES)
    parser.add_argument("--output", default="connectivity", help="folder (default: connectivity)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Look at all images, and write figures and numbers."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    if args.config and (args.size or args.model_kwargs):
        parser.error("--size and --model-kwargs are for --model; a config says both itself")
    if args.config and not args.weights:
        parser.error("--config needs --weights, the file of the trained detector")
    setup.start()
    try:
        from ..analysis.connectivity import check_thresholds, stage_labels
        from ..analysis.connectivity_files import ConnectivityWriter
        from ..analysis.pictures import list_pictures

        check_thresholds(args.thresholds)
        pictures, categories = list_pictures(args.images)
        network = _detector(args) if args.config else _named_model(args)
        stages = list(stage_labels(network.model).values())
        print(f"{network.text}, {len(pictures)} images", flush=True)
        with ConnectivityWriter(args.output, stages, categories, args.graphs) as writer:
            for picture, seen in _observed(network, pictures, args.thresholds):
                writer.add(picture, seen)
            unread = len(pictures) - writer.skipped.images
            if unread == len(pictures):
                raise ValueError(f"none of the {unread} images can be read")
        print(writer.table())
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError and KeyError for wrong files and keys.
        parser.error(str(error.args[-1] if isinstance(error, KeyError) else error))
    print(f"Figures and numbers are in {args.output}")
    if unread:
        sys.exit(f"{parser.prog}: {unread} of {len(pictures)} images cannot be read")


def _observed(
    network: _Network, pictures: Sequence[Picture], thresholds: Sequence[float]
) -> Iterator[tuple[Picture, Observation]]:
    """Pictures with what is observed of them; one that cannot be read is named and left out."""
    from tqdm import tqdm

    from ..analysis.connectivity import observe
    from ..data import PictureError

    read: list[Picture] = []

    def inputs() -> Iterator:
        for picture in (bar := tqdm(pictures, unit="image", disable=None)):
            try:
                prepared = network.prepare(picture.path)
            except PictureError as error:
                bar.write(str(error), file=sys.stderr)
                continue
            read.append(picture)
            yield prepared

    for seen in observe(network.model, inputs(), thresholds):  # reads one, then gives it
        yield read[-1], seen


def _named_model(args: argparse.Namespace) -> _Network:
    import torch
    from PIL import Image

    from ..analysis.pictures import normalised, resized
    from ..data import read_picture
    from ..factory import create_model

    size = (32 if "cifar" in args.model else 224) if args.size is None else args.size
    if size < 1:
        raise ValueError(f"--size is {size}; it must be at least 1")
    torch.manual_seed(0)
    options = dict(args.model_kwargs)
    model: Any = create_model(args.model, features_only=True, weights=args.weights, **options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def prepare(path: Path) -> tuple[Tensor, None]:
        picture = resized(Image.fromarray(read_picture(path)), size)
        return normalised(picture, model.variant.preprocessing).to(device), None

    weights = args.weights or "fresh weights, as random as they start"
    return _Network(model, prepare, f"{args.model} ({weights}), shorter side {size}")


def _detector(args: argparse.Namespace) -> _Network:
    from ..data import read_picture

    config = str(find_config(args.config))
    framework = "mmdet" if setup.is_mmdet(config, None) else "d2"
    adapter = import_module(f"..{framework}.inference", __package__)
    detector = adapter.Detector(config, args.weights, deploy=False)

    def prepare(path: Path) -> tuple[Tensor, Any]:
        return detector.backbone_input(read_picture(path))

    return _Network(detector.backbone, prepare, f"{args.config} ({args.weights})")
