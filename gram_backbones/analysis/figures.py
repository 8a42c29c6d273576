"""What the figures of this package share. They are drawn without pyplot, so no state is left."""

from __future__ import annotations

from pathlib import Path

try:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        f"gram_backbones.analysis draws with matplotlib, which cannot be imported ({error}): "
        "pip install gram-backbones[analysis]"
    ) from error

from ..atomic import replacing

__all__ = ["Figure", "LinearSegmentedColormap", "Normalize", "ScalarMappable", "save"]


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, on white, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save(Figure(), f"{folder}/empty.png")
        ...     [file.name for file in Path(folder).iterdir()]
        ['empty.png']
    """
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100, facecolor="white", bbox_inches="tight")
