"""Look at the data before a training: what the loader feeds the network, and what is in the sets.

  {prog} mask_rcnn_aognet40m_fpn_1x --count 12                  Detectron2
  {prog} mask-rcnn_aognet-40m_fpn_1x_coco --data-root coco      MMDetection
  {prog} CONFIG --dataset my_train=train.json:images/ --output browse

CONFIG is a file, .yaml or .py, or the name of a shipped config. The output folder gets samples.png,
augmented images with their boxes and masks, in the order of a training with this seed, and a plot
of every data set's statistics, which are printed too. KEY VALUE pairs change a config of
Detectron2, --cfg-options one of MMDetection.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config_folders import find_config
from . import d2, mmdet, setup
from .setup import PLACE

if TYPE_CHECKING:
    import numpy as np

    from ..data import Dataset
    from ..pictures import Instances

    Sample = tuple[str, np.ndarray, Instances, Sequence[str]]

_MOST = 60  # samples in one picture


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.usage = f"{parser.prog} CONFIG [options] [KEY VALUE ...]"
    parser.add_argument("--config", "--config-file", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--dataset", metavar="NAME=PLACE", help=f"own data to train on: {PLACE}")
    parser.add_argument("--val", metavar="NAME=PLACE", help="own data to evaluate on")
    parser.add_argument("--data-root", help="COCO's folder, for MMDetection")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for MMDetection"
    )
    parser.add_argument("--count", type=int, default=12, help="samples to draw (default: 12)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of order and augmentation (default: 0)"
    )
    parser.add_argument("--output", default="browse", help="folder (default: browse)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print and plot statistics, and draw samples."""
    parser = make_parser(prog)
    args = parser.parse_intermixed_args(argv)
    config = args.config or (args.words.pop(0) if args.words else None)
    if not config:
        parser.error("give a config: mask_rcnn_aognet40m_fpn_1x, for instance")
    if not 1 <= args.count <= _MOST:
        parser.error(f"--count is {args.count}; allowed are 1 to {_MOST}")
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}; it must be at least 0")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        parser.error(f"--output {args.output} is a file; it must be a folder")
    try:
        is_mmdet = find_config(config).suffix == ".py"
        if is_mmdet and args.words:
            raise ValueError(f"{args.words[0]!r} is left over; give --cfg-options KEY=VALUE")
        if not is_mmdet and (args.data_root or args.cfg_options):
            option = "--data-root" if args.data_root else "--cfg-options"
            raise ValueError(
                f"{option} is for MMDetection; give KEY VALUE pairs, and DETECTRON2_DATASETS"
            )
        setup.start()
        sets, samples = (_open_mmdet if is_mmdet else _open_d2)(config, args)
        _report(sets, Path(args.output))
        _draw(samples, args.count, Path(args.output, "samples.png"))
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError for wrong files, keys and values.
        parser.error(str(error.args[-1] if isinstance(error, KeyError) else error))


def _open_d2(config: str, args: argparse.Namespace) -> tuple[list[Dataset], Iterator[Sample]]:
    own = [] if args.dataset is None else ["--dataset", args.dataset]
    own += [] if args.val is None else ["--val", args.val]
    changes = [*args.words, "OUTPUT_DIR", args.output, "MODEL.WEIGHTS", ""]
    cfg = d2.load_config(d2.parse_args(["--config", config, *own, *changes]))
    from ..d2.browse import datasets_of, iterate_samples

    return datasets_of(cfg), iterate_samples(cfg, args.seed)


def _open_mmdet(config: str, args: argparse.Namespace) -> tuple[list[Dataset], Iterator[Sample]]:
    options = {"--dataset": args.dataset, "--val": args.val, "--data-root": args.data_root}
    words = [word for name, value in options.items() if value for word in (name, value)]
    changes = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    parsed = mmdet.train_parser().parse_args([config, *words, "--work-dir", args.output, *changes])
    from ..upstream_warnings import silence_printed_lines

    with silence_printed_lines():
        from ..mmdet.browse import datasets_of, iterate_samples
    cfg = mmdet.load_config(parsed, ("train_dataloader", "val_dataloader"))
    return datasets_of(cfg), iterate_samples(cfg, args.seed)


def _report(sets: Iterable[Dataset], folder: Path) -> None:
    """Print the statistics of every data set, and plot them into the folder."""
    from ..data import gather_statistics

    folder.mkdir(parents=True, exist_ok=True)
    for dataset in sets:
        found = gather_statistics(dataset)
        file = folder / f"statistics_{dataset.name}.png"
        found.draw(file)
        print(f"{found.text()}\nplotted in {file}\n", flush=True)


def _draw(samples: Iterator[Sample], count: int, file: Path) -> None:
    """Draw the first samples into one picture."""
    from itertools import islice

    from PIL import Image

    from ..atomic import replacing
    from ..pictures import draw_cell, draw_grid

    cells = []
    for path, image, found, names in islice(samples, count):
        height, width, _ = image.shape
        crowds = sum(found.crowds or [])
        objects = len(found) - crowds
        what = f"{height} x {width}, {objects} object{'s' * (objects != 1)}"  # the font has no ×
        what += f" and {crowds} crowd" if crowds else ""
        cells.append(draw_cell(image, found, names, f"{Path(path).name}: {what}"))
        print(f"{len(cells)}/{count} {path}: {what}", flush=True)
    with replacing(file) as part:
        Image.fromarray(draw_grid(cells)).save(part, format="PNG")
    print(f"drawn in {file}")
