"""Where the frameworks' configs are, in a checkout and in an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .suggestions import did_you_mean

FRAMEWORKS = ("d2", "mmdet")
_PACKAGE = Path(__file__).resolve().parent


def config_dirs(frameworks: Sequence[str] = FRAMEWORKS) -> list[Path]:
    """Folders of configs, inside an installed package or next to it in a checkout."""
    names = [f"{framework}_configs" for framework in frameworks]
    candidates = [base / name for name in names for base in (_PACKAGE, _PACKAGE.parent)]
    return [path for path in candidates if path.is_dir()]


def list_configs(frameworks: Sequence[str] = FRAMEWORKS) -> dict[str, Path]:
    """The shipped configs by their bare names, such as ``mask_rcnn_aognet40m_fpn_1x``.

    Examples:
        >>> list_configs(["d2"])["mask_rcnn_aognet40m_fpn_1x"].name
        'mask_rcnn_aognet40m_fpn_1x.yaml'
    """
    paths = [path for folder in config_dirs(frameworks) for path in folder.rglob("*.*")]
    return {
        path.stem: path
        for path in sorted(paths)
        if path.suffix in (".yaml", ".py") and path.parent.name != "_base_"
    }


def find_config(name: str, frameworks: Sequence[str] = FRAMEWORKS) -> Path:
    """A config file: by its path, or a shipped one by its bare name.

    Raises:
        ValueError: there is neither such a file nor such a name.

    Examples:
        >>> find_config("retinanet_aognet-40m_fpn_1x_coco").parent.name
        'retinanet'
    """
    if (path := Path(name)).is_file():
        return path
    known = list_configs(frameworks)
    stem = path.name.removesuffix(".yaml").removesuffix(".py")
    if name in (stem, f"{stem}.yaml", f"{stem}.py") and stem in known:
        return known[stem]
    raise ValueError(
        f"there is no config {name!r}{did_you_mean(stem, known)}; allowed are files and the names "
        "that gram-backbones configs --names prints"
    )
