"""``python -m gram_backbones configs`` prints the folders of the configs, ``models`` the models.

``configs d2`` and ``configs mmdet`` print the folder of one framework, ``env`` versions and devices
for a bug report. ``check-data name=annotations.json:images/`` checks a data set.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from .config_folders import FRAMEWORKS, config_dirs

# Collectors of versions and devices, in the order of preference.
_COLLECTORS = (
    ("detectron2.utils.collect_env", "collect_env_info"),
    ("mmengine.utils.dl_utils", "collect_env"),
    ("torch.utils.collect_env", "get_pretty_env_info"),
)


def environment() -> Iterator[str]:
    """Versions and devices, as the frameworks that are installed collect them."""
    yield f"gram_backbones {import_module(__package__).__version__}"
    for module, function in _COLLECTORS:
        try:
            found = getattr(import_module(module), function)()
        except ImportError:
            continue
        if isinstance(found, dict):
            found = "\n".join(f"{key}: {value}" for key, value in found.items())
        yield f"\n{module}\n{found}"


def check(args: argparse.Namespace) -> int:
    """Check data sets, print what was found, and return the exit code."""
    from .data import DataError, check_data, check_same_classes, read_dataset

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
        sys.exit(f"check-data: {error}")
    return int(any(report.errors for report in reports))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gram_backbones", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    configs = commands.add_parser("configs", help="folders of the configs")
    configs.add_argument("framework", nargs="?", choices=FRAMEWORKS)
    commands.add_parser("env", help="versions and devices")
    commands.add_parser("models", help="names of all models")
    data = commands.add_parser(
        "check-data", help="check data sets; the exit code is 1 if there are errors"
    )
    data.add_argument(
        "data",
        nargs="+",
        metavar="NAME=PLACE",
        help="name=annotations.json:images/, or name=folder of YOLO, Pascal VOC or LabelMe",
    )
    data.add_argument("--masks", action="store_true", help="a mask head will be trained")
    data.add_argument("--quick", action="store_true", help="do not open the pictures")
    data.add_argument("--json", metavar="FILE", help="write everything that was found to a file")
    data.add_argument("--workers", type=int, help="threads that open pictures")
    data.add_argument("--cache", metavar="FOLDER", help="where COCO JSON of a folder is written")
    return parser.parse_args()


def main() -> int:
    """Run the command line and return the exit code."""
    args = parse_args()
    lines: Iterable
    if args.what == "check-data":
        return check(args)
    if args.what == "configs":
        lines = config_dirs([args.framework] if args.framework else FRAMEWORKS)
    elif args.what == "env":
        lines = environment()
    else:
        from .registry import list_models  # needs torch, which takes seconds to import

        lines = list_models()
    print("\n".join(map(str, lines)))
    return 0


if __name__ == "__main__":
    # Only an error is an exit: others run this module inside a process of their own.
    if code := main():
        sys.exit(code)
