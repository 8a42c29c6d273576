"""Write a run's report: one HTML page that opens without a network.

{prog} output/demo
{prog} output/demo output/demo_r18 --output comparison.html

RUN is the folder of a Detectron2 or MMDetection run, OUTPUT_DIR or the work dir. The run may still
be going on. The page has curves, AP by class and size, precision and recall, the confusion matrix,
best and worst images, the config and the warnings. Two runs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import setup
from .setup import PLACE


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Read the runs and write the page."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; one or two")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: report.html in the first folder, report_with_NAME.html for two)",
    )
    parser.add_argument(
        "--data",
        metavar="NAME=PLACE",
        help=f"what was evaluated, where a run does not say so or it was moved: {PLACE}",
    )
    args = parser.parse_args(argv)
    if len(args.runs) > 2:
        parser.error(f"{len(args.runs)} runs are given; a report is of one or two")
    setup.start()
    from ..atomic import replacing
    from ..data import read_dataset
    from ..report.page import render_report
    from ..report.runs import read_run

    try:
        runs = [read_run(folder) for folder in args.runs]
        name = "report.html" if len(runs) == 1 else f"report_with_{runs[1].name}.html"
        output = Path(args.output or Path(args.runs[0], name))
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output is {str(output)!r}; give a file in a folder that exists")
        data = read_dataset(args.data) if args.data else None
        with replacing(output) as part:
            part.write_text(render_report(runs, data), encoding="utf-8")
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB. Open {output.resolve().as_uri()}")
