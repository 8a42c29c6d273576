"""Draw a trained detector's predictions. The config's kind says by which framework.

  {prog} mask_rcnn_aognet40m_fpn_1x output/model_final.pth photographs
  {prog} --config my.py --weights epoch_12.pth "photographs/**/*.jpg" --format coco
  {prog} --config my.yaml --weights model_final.pth drive.mp4 --classes car "stop sign"
  {prog} --config my.yaml --weights model_final.pth 0    (a camera; Ctrl-C ends it)

CONFIG is a file, .yaml or .py, or the name of a shipped config, as gram-backbones configs --names
prints them. INPUT is an image, a video, a folder of them, a quoted glob, or the index of a camera.
An image is drawn as NAME.png in the output folder, a video as NAME.mp4. All predictions go to one
file there: predictions.json has the boxes in pixels (x1, y1, x2, y2), scores and classes of every
image; coco_results.json COCO's results, with masks; predictions.csv a row for every instance.

An input that cannot be read is named and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config_folders import find_config
from ..suggestions import did_you_mean
from . import setup

if TYPE_CHECKING:
    from ..data import PictureError
    from ..predictions.sources import Frame, Source

_DRAWN_SCORE = 0.5
_INTERRUPTED = 130  # exit code, as shells have it
_QUIET_SECONDS = 5  # longest time without a line while a video is read


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.usage = (
        f"{parser.prog} CONFIG WEIGHTS INPUT ... [options]\n"
        f"       {parser.prog} --config CONFIG --weights WEIGHTS INPUT ... [options]"
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="what to predict on")
    parser.add_argument("--config", help="in place of the first argument")
    parser.add_argument("--weights", help="file of the trained detector")
    parser.add_argument("--output", default="predictions", help="folder (default: predictions)")
    parser.add_argument(
        "--score",
        type=_share,
        help="leave out lower scores (default: 0.5 in pictures, all that the detector gives in the "
        "file of predictions)",
    )
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="leave out all other classes")
    parser.add_argument(
        "--format",
        choices=("json", "coco", "csv"),
        default="json",
        help="of the file of predictions (default: json)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="only the file of predictions")
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=1,
        metavar="N",
        help="frames computed together (default: 1)",
    )
    parser.add_argument(
        "--deploy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with norms folded in and fused operators: faster, the same up to rounding",
    )
    return parser


def _share(text: str) -> float:
    if not 0 <= (score := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"it is {text}; allowed are 0 to 1")
    return score


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; at least 1 is needed")
    return number


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with config and weights wherever they were given."""
    args = parser.parse_intermixed_args(argv)
    words = iter(args.inputs)
    args.config = args.config or next(words, None)
    args.weights = args.weights or next(words, None)
    args.inputs = [*words]
    if not args.inputs:
        hint = "; --classes takes all words after it, so put it last" if args.classes else ""
        parser.error(f"give a config, weights and at least one input{hint}")
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Predict, draw and write."""
    parser = make_parser(prog)
    args = parse_args(parser, argv)
    from ..predictions.sources import find_sources, require_cameras

    try:
        config = str(find_config(args.config))
        sources = find_sources(args.inputs)
        require_cameras(sources)
        _require_other_files(sources, Path(args.output))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    setup.start()
    from ..weights.records import is_published

    if is_published(args.weights):
        parser.error(
            f"{args.weights} are weights of a network alone; give the file of a trained detector"
        )
    try:
        framework = "mmdet" if setup.is_mmdet(config, parser.prog) else "d2"
        adapter = import_module(f"..{framework}.inference", __package__)
        detector = adapter.Detector(config, args.weights, deploy=args.deploy)
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        # Detectron2 and yacs raise AssertionError and KeyError for wrong files and keys.
        parser.error(str(error.args[-1] if error.args else error))
    for name in args.classes or ():
        if name not in detector.names:
            meant = did_you_mean(name, detector.names)
            parser.error(f"there is no class {name!r}{meant}; allowed are {detector.names}")
    try:
        unread = _predict(args, detector, sources)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; unfinished files are not kept", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    if unread:
        sys.exit(f"{parser.prog}: {unread} of {len(sources)} inputs cannot be read")


def _require_other_files(sources: Sequence[Source], output: Path) -> None:
    """Check that no picture would replace what it is drawn from.

    Raises:
        ValueError: one would.
    """
    files = {Path(source.path).resolve() for source in sources}
    for source in sources:
        if (output / source.drawn).resolve() in files:
            raise ValueError(f"{output / source.drawn} is an input; choose another --output")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; it must be a folder")


def _predict(args: argparse.Namespace, detector: Any, sources: Sequence[Source]) -> int:
    """Predict on all sources, and return the number of those that cannot be read."""
    from ..pictures import draw_predictions
    from ..predictions.sources import count_frames, read_batches
    from ..predictions.writing import FILES, DrawnFiles, predictions_file

    output, names = Path(args.output), detector.names
    output.mkdir(parents=True, exist_ok=True)
    wanted = {names.index(name) for name in args.classes or names}
    drawn_score = _DRAWN_SCORE if args.score is None else args.score
    progress = _Progress(count_frames(sources), drawn_score)
    with ExitStack() as stack:
        stack.enter_context(progress)
        add = stack.enter_context(predictions_file(output, args.format, names, sources))
        drawings = stack.enter_context(DrawnFiles(output))
        for frames in read_batches(sources, args.batch_size, progress.skip):
            for frame, found in zip(frames, detector([frame.image for frame in frames])):
                found = found.of_classes(wanted)
                add(frame, found.scored(args.score or 0.0))
                if not args.no_pictures:
                    picture = draw_predictions(frame.image, found, names, drawn_score)
                    drawings.write(frame, picture)
                progress.show(frame, len(found.scored(drawn_score)))
    written = (
        f"{FILES[args.format]} is" if args.no_pictures else f"Pictures and {FILES[args.format]} are"
    )
    print(f"{written} in {output}")
    return progress.unread


class _Progress:
    """A bar where errors go to a terminal; otherwise lines, for a video every few seconds."""

    def __init__(self, total: int | None, score: float):
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="frame", disable=None)
        self._total, self._score = total, score
        self._done = self.unread = 0
        self._last = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def skip(self, source: Source, error: PictureError) -> None:
        self._done += 1
        self.unread += 1
        self._bar.update()
        self._bar.write(str(error), file=sys.stderr)

    def show(self, frame: Frame, drawn: int) -> None:
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if not self._bar.disable or (frame.number and now - self._last < _QUIET_SECONDS):
            return
        self._last = now
        total = "" if self._total is None else f"/{self._total}"
        score = f"{drawn} at a score of {self._score:g} or more"
        print(f"{self._done}{total} {frame.name}: {score}", flush=True)
