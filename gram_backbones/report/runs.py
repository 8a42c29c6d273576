"""Run folders of Detectron2 and MMDetection in one plain form.

Only files are read, so neither framework need be installed, and the run may still be going on.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..run_record import RunRecord, read_run_record

Series = tuple[tuple[int, float], ...]  # (iteration, value), iterations from 1 and ascending

_AP = re.compile(r"(?:\w+/)?(bbox|segm)_mAP(?:_(50|75|s|m|l))?$")
_CLASS_AP = re.compile(r"coco/(.+)_precision$")
_LINE = re.compile(  # the first line of a message: Detectron2's log, or MMEngine's
    r"\[[\d/]+ [\d:]+\] (?P<d2>\S+) (?P<d2_level>[A-Z]+): "
    r"|[\d/]+ [\d:]+ - (?P<mm>\S+) - (?P<mm_level>[A-Z]+) - "
    r"|^Name of parameter - Initialization information$",  # MMEngine's list has no level
    re.MULTILINE,
)
_PROGRESS = re.compile(  # epoch, iteration and length of the epoch; or the iteration alone
    r"Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]|Iter\(train\)\s+\[\s*(\d+)/\d+\]"
)


@dataclass(frozen=True)
class Run:
    """A training or evaluation, finished or not, as its folder tells it.

    Attributes:
        folder: of the run: ``OUTPUT_DIR`` or ``work_dir``.
        framework: ``"Detectron2"`` or ``"MMDetection"``.
        scalars: what was logged, by name. Names and units are those of Detectron2 in both
            frameworks where there are two: ``total_loss``, ``lr``, ``bbox/AP``, ``segm/APs``, …
            with AP in percent. Values that are not numbers are left out.
        record: what the run wrote about itself; None if it was started by other programs.
        predictions: files of COCO results, by data set.
        epoch_length: iterations in an epoch; 0 if unknown.
        printed: iterations up to the last line of the log. MMEngine's hook logs fewer as numbers.
    """

    folder: Path
    framework: str
    scalars: dict[str, Series]
    record: RunRecord | None = None
    predictions: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    epoch_length: int = 0
    printed: int = 0

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def iterations(self) -> int:
        """Iterations up to the last line that is logged; 0 if nothing was trained."""
        return max([self.printed, *(points[-1][0] for points in self.scalars.values())])

    @property
    def max_iterations(self) -> int:
        """Iterations that the run is to have; 0 if unknown."""
        if self.record is None:
            return 0
        return self.record.iterations or self.record.epochs * self.epoch_length

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end; False if its length is unknown."""
        length, record = self.max_iterations, self.record
        # MMEngine does not log every epoch's last iterations.
        last = f"epoch_{record.epochs}.pth" if record and record.epochs else ""
        named = self.checkpoint is not None and self.checkpoint.name == last
        return named or 0 < length <= self.iterations

    @property
    def losses(self) -> list[str]:
        """Names of the losses, the total first."""
        names = [name for name in self.scalars if re.search(r"(^|[._])loss", name)]
        return sorted(names, key=lambda name: (name != "total_loss", name))

    @property
    def precisions(self) -> dict[str, float]:
        """The last evaluation's AP and its kinds, in percent, by names such as ``bbox/AP50``."""
        found = {n: s[-1] for n, s in self.scalars.items() if n.startswith(("bbox/", "segm/"))}
        last = max((point[0] for point in found.values()), default=0)
        return {name: value for name, (iteration, value) in found.items() if iteration == last}

    @cached_property
    def log(self) -> str:
        """The text of the logs, the oldest first; empty without logs."""
        files = [self.folder / "log.txt"] if self.framework == "Detectron2" else _mmdet_logs(self)
        return "".join(f.read_text(errors="replace") for f in files if f.is_file())

    @property
    def warnings(self) -> Counter[str]:
        """Warnings and errors of the log, and how often each occurs."""
        return Counter(text for level, text in _messages(self.log) if level not in ("INFO", None))

    @property
    def config_file(self) -> Path | None:
        """The whole config as the run saved it."""
        if self.framework == "Detectron2":
            files = [self.folder / "config.yaml"]
        else:
            files = sorted(self.folder.glob("*.py"), key=lambda f: f.stat().st_mtime)
        return files[-1] if files and files[-1].is_file() else None

    @property
    def checkpoint(self) -> Path | None:
        """The last weight file that the run wrote, if it is still there."""
        pointer = self.folder / "last_checkpoint"
        if not pointer.is_file():
            return None
        # Detectron2 notes a name, MMEngine a path, which is wrong once the folder was moved.
        file = self.folder / Path(pointer.read_text().strip()).name
        return file if file.is_file() else None


def read_run(folder: str | Path) -> Run:
    """Read a run folder of Detectron2 or MMDetection.

    Iterations that a resumed run repeated, and those of an earlier run in the same folder, are
    replaced by the later ones.

    Args:
        folder: ``OUTPUT_DIR`` of Detectron2, ``work_dir`` of MMDetection.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not a run's, or a file in it cannot be read.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> line = {"iteration": 19, "total_loss": 2.5, "lr": 0.02}
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metrics.json").write_text(json.dumps(line))
        ...     run = read_run(folder)
        >>> run.framework, run.iterations, run.scalars["total_loss"]
        ('Detectron2', 20, ((20, 2.5),))
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; give the folder of a run")
    record = read_run_record(folder)
    if (folder / "metrics.json").is_file() or (folder / "config.yaml").is_file():
        scalars = _collect(_d2_points(folder / "metrics.json"))
        found = _d2_predictions(folder)
        return Run(folder, "Detectron2", scalars, record, found)
    starts = sorted(path.parent for path in folder.glob("*/vis_data"))
    if not starts:
        raise ValueError(
            f"{folder} is not the folder of a run: it has neither Detectron2's metrics.json or "
            "config.yaml nor MMDetection's */vis_data"
        )
    run = Run(folder, "MMDetection", {}, record, _mmdet_predictions(folder))
    length, printed = _progress(run.log)
    scalars = _collect(_mmdet_points(starts, length))
    return Run(folder, "MMDetection", scalars, record, run.predictions, length, printed)


def _progress(log: str) -> tuple[int, int]:
    """Iterations in an epoch, and up to the last line, of MMEngine's log; 0 if unknown."""
    lines = [[int(number or 0) for number in line] for line in _PROGRESS.findall(log)]
    if not lines:
        return 0, 0
    epoch, iteration, length, alone = lines[-1]
    return length, alone or (epoch - 1) * length + iteration


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; the last one may not be written to its end yet."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if isinstance(content, dict):
            yield content


def _d2_points(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Iterations, from 1, and what was logged then."""
    points: list[tuple[int, dict[str, Any]]] = []
    for line in _read_lines(file):
        if not isinstance(at := line.pop("iteration", None), int):
            continue
        # Detectron2 counts iterations from 0. The last evaluation has a line of its own, which
        # counts on. So has one between two logged iterations: it comes after the later of these.
        if "total_loss" in line:
            points.append((at + 1, line))
        elif points and at < points[-1][0]:
            points.insert(-1, (at + 1, line))
        else:
            points.append((at, line))
    return points


def _mmdet_points(starts: Iterable[Path], length: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of MMEngine's; ``length`` is that of an epoch in iterations, 0 if unknown."""
    at = 0
    for start in starts:
        for line in _read_lines(start / "vis_data/scalars.json"):
            if not isinstance(step := line.pop("step", 0), int):
                continue
            # Evaluations are counted in epochs, or, with log_metric_by_epoch=False, in iterations;
            # not every epoch's last iteration is logged.
            end = step * length
            at = step if "loss" in line else max(at, end if 0 < end <= at + length else step)
            yield at, _renamed(line)
        for line in _read_lines(start / f"{start.name}.json"):  # of a test
            yield at, _renamed(line)


def _renamed(line: dict[str, Any]) -> dict[str, Any]:
    """MMDetection's names and units as Detectron2's; -1 stands for no AP.

    Evaluations are timed too. Their seconds are left out, as they are not a training's.
    """
    dropped = {"epoch", "iter"} | (set() if "loss" in line else {"data_time", "time"})
    found = {}
    last = "segm" if any("segm_mAP" in name for name in line) else "bbox"  # its classes are logged
    for name, value in line.items():
        if name in dropped:
            continue
        if match := _CLASS_AP.match(name):
            name, value = f"{last}/AP-{match[1]}", 100 * value
        elif match := _AP.match(name):
            name = f"{match[1]}/AP{match[2] or ''}"
            value = 100 * value if value >= 0 else math.nan
        found["total_loss" if name == "loss" else name] = value
    return found


def _collect(points: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Series]:
    """Series by name; where iterations go back, the later points replace the earlier ones."""
    found: dict[str, dict[int, float]] = {}
    last = 0
    for at, values in points:
        if at < last:
            for series in found.values():
                for iteration in [i for i in series if i >= at]:
                    del series[iteration]
        last = at
        for name, value in values.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                found.setdefault(name, {})[at] = float(value)
    return {name: tuple(sorted(series.items())) for name, series in found.items() if series}


def _d2_predictions(folder: Path) -> dict[str, tuple[Path, ...]]:
    files = sorted(folder.glob("inference/*/coco_instances_results.json"))
    return {file.parent.name: (file,) for file in files}


def _mmdet_predictions(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Results of :class:`gram_backbones.mmdet.GramRunner`: ``predictions/val.bbox.json``, …."""
    found: dict[str, tuple[Path, ...]] = {}
    for file in sorted(folder.glob("predictions/*.json")):
        name, _, kind = file.stem.rpartition(".")
        if kind in ("bbox", "segm"):
            found[name] = (*found.get(name, ()), file)
    return found


def _mmdet_logs(run: Run) -> list[Path]:
    return sorted(run.folder.glob("*/*.log"))


def _messages(log: str) -> Iterator[tuple[str | None, str]]:
    """Levels and texts of a log's messages, which may have several lines."""
    starts = [*_LINE.finditer(log)]
    ends = [match.start() for match in starts[1:]] + [len(log)]
    for match, end in zip(starts, ends):
        yield match["d2_level"] or match["mm_level"], log[match.end() : end].strip()
