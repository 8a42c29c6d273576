"""Where the frameworks' configs are, in a checkout and in an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FRAMEWORKS = ("d2", "mmdet")
_PACKAGE = Path(__file__).resolve().parent


def config_dirs(frameworks: Sequence[str] = FRAMEWORKS) -> list[Path]:
    """Folders of configs, inside an installed package or next to it in a checkout."""
    names = [f"{framework}_configs" for framework in frameworks]
    candidates = [base / name for name in names for base in (_PACKAGE, _PACKAGE.parent)]
    return [path for path in candidates if path.is_dir()]
