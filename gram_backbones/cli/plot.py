"""Draw learning curves of training runs, detectors or classifiers, in one picture.

  {prog} work_dirs/aognet_12m work_dirs/dgnet_r50 --output curves.png
  {prog} output/*-seed* --metric bbox/AP --metric lr --output curves.svg

RUN is a run's folder, or the file in it that has the curves: metrics.json of Detectron2,
scalars.json of MMDetection, metrics.jsonl of a classifier. By default, classifiers are drawn as in
Figure 5 of the AOGNet paper, top-1 error and training loss against epochs, and detectors with box
AP, mask AP and training loss against iterations. Runs whose folders differ only in -seedN share a
colour: thin lines are the seeds, the thick one is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Draw the curves of the runs that are named."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or file of a run")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="picture to write: .png, .svg, .pdf"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a panel for this metric, as the runs name it; can be repeated",
    )
    args = parser.parse_args(argv)
    from ..report.curves import draw_curves, read_curves

    try:
        draw_curves([read_curves(run) for run in args.runs], args.output, args.metric)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"wrote {args.output}")
