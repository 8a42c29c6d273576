"""Learning curves of detectors and classifiers, several runs in one picture.

Takes ``pip install gram-backbones[analysis]``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from statistics import mean
from typing import Any

from .runs import Series, read_run

CLASSIFIER = "metrics.jsonl"
# Files with curves, and how many folders below the run's they are.
_DEPTHS = {"metrics.json": 0, "scalars.json": 2, CLASSIFIER: 0}
_SEED = re.compile(r"-seed(\d+)$")
_DEFAULTS = ("error", "loss", "bbox/AP", "segm/AP", "total_loss")
_TITLES = {
    "error": "top-1 error, %",
    "top1": "top-1, %",
    "loss": "training loss",
    "bbox/AP": "box AP",
    "segm/AP": "mask AP",
    "total_loss": "training loss",
}
_STYLES = ("-", "--", ":")
_COLOURS = tuple(f"C{index}" for index in range(10))
_THIN = {"linewidth": 0.7, "alpha": 0.5}
_FEW = 30  # points of a curve that are marked


@dataclass(frozen=True)
class Curves:
    """What a run logged.

    Attributes:
        folder: of the run, an absolute path.
        unit: of the horizontal axis, ``"epoch"`` or ``"iteration"``.
        series: points (epoch or iteration, value) by the metric's name.
    """

    folder: Path
    unit: str
    series: dict[str, Series]

    @property
    def seed(self) -> int:
        """N of a folder whose name ends in ``-seedN``, otherwise 0."""
        found = _SEED.search(self.folder.name)
        return int(found[1]) if found else 0

    @property
    def row(self) -> Path:
        """The folder without ``-seedN``, which runs with other seeds share."""
        return self.folder.with_name(_SEED.sub("", self.folder.name))


def read_curves(path: str | Path) -> Curves:
    """The curves of a run.

    Args:
        path: a run's folder, or in it metrics.json of Detectron2, scalars.json of MMDetection or
            metrics.jsonl of a classifier. A classifier also has the curve ``error``, 100 − top-1.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is not a run's, or nothing has been logged.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     run = Path(folder, "resnet20-seed1")
        ...     run.mkdir()
        ...     _ = (run / "metrics.jsonl").write_text('{"epoch": 1, "top1": 40.0}')
        ...     curves = read_curves(run)
        >>> curves.row.name, curves.seed, curves.series["error"]
        ('resnet20', 1, ((1, 60.0),))
    """
    folder = _run_folder(Path(path))
    if (folder / CLASSIFIER).is_file():
        unit, series = "epoch", _classifier_series(folder / CLASSIFIER)
    else:
        unit, series = "iteration", read_run(folder).scalars
    if not series:
        raise ValueError(f"{path} has no curves: nothing has been logged yet")
    return Curves(folder.resolve(), unit, series)


def by_row(runs: Sequence[Curves]) -> dict[str, list[Curves]]:
    """Runs by a short name for all of their seeds, in the given order, sorted by seed.

    Examples:
        >>> folders = [Path("out", name) for name in ("a-seed1", "b", "a-seed0")]
        >>> runs = [Curves(folder, "epoch", {}) for folder in folders]
        >>> {name: [run.seed for run in found] for name, found in by_row(runs).items()}
        {'a': [0, 1], 'b': [0]}
    """
    rows: dict[Path, list[Curves]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    times = Counter(row.name for row in rows)
    return {
        row.name if times[row.name] == 1 else f"{row.parent.name}/{row.name}": sorted(
            found, key=lambda run: run.seed
        )
        for row, found in rows.items()
    }


def draw_curves(runs: Sequence[Curves], file: str | Path, metrics: Sequence[str] = ()) -> None:
    """Plot metrics of runs side by side, one colour for runs that differ only in their seed.

    Where there are several seeds, thin lines are the seeds and the thick one is their mean.

    Args:
        runs: at least one.
        file: picture to write, in a format that matplotlib knows by its name.
        metrics: a panel each. By default the top-1 error and the training loss of classifiers, as
            in Figure 5 of the AOGNet paper; box AP, mask AP and the training loss of detectors.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no run has one of the metrics, its units differ, or the format is unknown.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> run = Curves(Path("resnet20"), "epoch", {"error": ((1, 60.0), (2, 40.0))})
        >>> with TemporaryDirectory() as folder:
        ...     draw_curves([run], Path(folder, "curves.png"))
        ...     Path(folder, "curves.png").read_bytes()[1:4]
        b'PNG'
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ImportError(
            "curves are drawn by matplotlib: pip install gram-backbones[analysis]"
        ) from error
    from ..atomic import replacing

    known = list(dict.fromkeys(name for run in runs for name in run.series))
    metrics = metrics or [name for name in _DEFAULTS if name in known] or known[:1]
    for name in metrics:
        if name not in known:
            raise ValueError(f"there is no metric {name!r}; the runs have {', '.join(known)}")
    rows = by_row(runs)
    styles = ({"linestyle": style, "color": c} for style, c in product(_STYLES, _COLOURS))
    looks: dict[str, dict[str, Any]] = dict(zip(rows, cycle(styles)))
    figure = Figure(figsize=(1.4 + 4.6 * len(metrics), 4.4), layout="constrained")
    for name, axis in zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0]):
        for label, found in rows.items():
            _draw_row(axis, [run.series[name] for run in found if name in run.series], looks[label])
        axis.set(xlabel=_common_unit(name, runs), title=_TITLES.get(name, name))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    with replacing(file) as part:
        # By default, matplotlib takes the format from the name, which is not yet the file's own.
        figure.savefig(part, format=Path(file).suffix[1:] or "png", dpi=120, facecolor="white")


def _run_folder(path: Path) -> Path:
    """The folder of a run to which a file belongs."""
    if not path.is_file():
        return path
    if path.name not in _DEPTHS:
        raise ValueError(f"{path} has no curves; allowed are folders and files named {[*_DEPTHS]}")
    return path.absolute().parents[_DEPTHS[path.name]]


def _classifier_series(file: Path) -> dict[str, Series]:
    """The series of metrics.jsonl, a line for each epoch."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, text in enumerate(file.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            epoch = line.pop("epoch")
        except (AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"cannot read {file}, line {number}: {error!r}") from error
        if "top1" in line:
            line["error"] = 100 - line["top1"]
        for name, value in line.items():
            found.setdefault(name, []).append((epoch, value))
    return {name: tuple(points) for name, points in found.items()}


def _draw_row(axis: Any, seeds: Sequence[Series], look: dict[str, str]) -> None:
    """The curves of one row; the mean of several is over the points that all have."""
    several = len(seeds) > 1
    for points in seeds:
        marker = "." if len(points) <= _FEW and not several else None
        axis.plot(*zip(*points), marker=marker, **look, **(_THIN if several else {}))
    if several:
        values = [dict(points) for points in seeds]
        common = sorted(set.intersection(*map(set, values)))
        average = [mean(each[x] for each in values) for x in common]
        axis.plot(common, average, marker="." if len(common) <= _FEW else None, **look)


def _common_unit(metric: str, runs: Sequence[Curves]) -> str:
    """The unit of the horizontal axis of a metric's panel."""
    units = {run.unit: run.folder for run in runs if metric in run.series}
    if len(units) > 1:
        said = " and ".join(f"{unit}s in {path}" for unit, path in units.items())
        raise ValueError(f"{metric!r} is counted in {said}; draw these runs in two pictures")
    return next(iter(units))
