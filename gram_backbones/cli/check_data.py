"""Check data sets: annotations, and every picture.

The exit code is 1 if the data has errors, and 2 if it cannot be read at all.

{prog} --masks my_train=train.json:images/ my_val=val.json:images/
{prog} my_train=yolo/train

A data set is name=annotations.json:images/, or name=folder of YOLO, Pascal VOC or LabelMe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from . import setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print what was found, by severity."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("data", nargs="+", metavar="NAME=PLACE", help="a data set, see above")
    parser.add_argument("--masks", action="store_true", help="a mask head will be trained")
    parser.add_argument("--quick", action="store_true", help="read only the pictures' headers")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found to a file")
    parser.add_argument("--workers", type=int, help="threads that open pictures")
    parser.add_argument("--cache", metavar="FOLDER", help="where COCO JSON of a folder is written")
    args = parser.parse_args(argv)
    from ..data import DataError, check_data, check_same_classes, read_dataset

    reports = []
    try:
        first = None
        for spec in args.data:
            dataset = read_dataset(spec, cache=args.cache, classes=first.classes if first else None)
            first = first or dataset
            check_same_classes(first.name, first.classes, dataset.name, dataset.classes)
            report = check_data(
                dataset, masks=args.masks, pictures=not args.quick, workers=args.workers
            )
            reports.append(report)
            print(report.text(), flush=True)
        if args.json:
            Path(args.json).write_text(f"[{', '.join(r.json() for r in reports)}]\n")
    except (DataError, ImportError, OSError) as error:
        parser.error(str(error))
    if any(report.errors for report in reports):
        sys.exit(1)
