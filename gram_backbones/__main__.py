"""``python -m gram_backbones configs`` prints the folders of the configs, ``models`` the models."""

import argparse
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dirs() -> list[Path]:
    """Folders of configs, inside an installed package or next to it in a checkout."""
    names = ("d2_configs", "mmdet_configs")
    candidates = [base / name for name in names for base in (_PACKAGE, _PACKAGE.parent)]
    return [path for path in candidates if path.is_dir()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gram_backbones", description=__doc__)
    parser.add_argument("what", choices=["configs", "models"])
    if parser.parse_args().what == "configs":
        lines = config_dirs()
    else:
        from .registry import list_models  # needs torch, which takes seconds to import

        lines = list_models()
    print("\n".join(map(str, lines)))
