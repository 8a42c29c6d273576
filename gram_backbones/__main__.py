"""``python -m gram_backbones configs`` prints the folders of the configs, ``models`` the models.

``list-weights`` prints the published weights, whose tags ``create_model`` takes, and whether their
files are here. ``configs d2`` and ``configs mmdet`` print the folder of one framework, ``env``
versions and devices for a bug report.
"""

import argparse
from collections.abc import Iterator
from importlib import import_module

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


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gram_backbones", description=__doc__)
    parser.add_argument("what", choices=["configs", "env", "list-weights", "models"])
    parser.add_argument("framework", nargs="?", choices=FRAMEWORKS)
    args = parser.parse_args()
    if args.what == "configs":
        lines = config_dirs([args.framework] if args.framework else FRAMEWORKS)
    elif args.what == "env":
        lines = environment()
    elif args.what == "list-weights":
        from .weights.published import weight_table

        lines = columns(weight_table())
    else:
        from .registry import list_models  # needs torch, which takes seconds to import

        lines = list_models()
    print("\n".join(map(str, lines)))
