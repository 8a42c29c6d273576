"""Problems of a data set that training would stumble over, or learn from."""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from tqdm import tqdm

from .annotations import IMAGE, annotation_problems, usable
from .pictures import picture_problems
from .reading import DataError, Dataset, load_json

ERROR, WARNING = "error", "warning"
# What is looked for, and what training does about it. docs/own-data.md lists the same.
KINDS = {
    "malformed entry": (ERROR, "the frameworks stop at it"),
    "nothing to learn": (ERROR, "there are no pictures, classes or boxes"),
    "duplicate id": (ERROR, "annotations go to the wrong picture or class"),
    "annotation id 0": (ERROR, "evaluation takes its match for none: AP is too low"),
    "duplicate class name": (ERROR, "two classes cannot be told apart"),
    "unknown image id": (ERROR, "the annotation is lost"),
    "unknown category id": (ERROR, "the annotation is lost, or training stops"),
    "missing picture": (ERROR, "training stops when it gets there"),
    "corrupt picture": (ERROR, "training stops when it gets there"),
    "truncated picture": (ERROR, "training stops, or sees grey areas"),
    "16-bit picture": (ERROR, "training stops when it gets there; save it with 8 bits"),
    "other size": (ERROR, "boxes do not fit; Detectron2 stops"),
    "annotated before rotation": (ERROR, "boxes do not fit; the frameworks rotate by EXIF"),
    "negative box": (ERROR, "dropped; boxes are x, y, width, height"),
    "box outside the picture": (ERROR, "it has nothing to show"),
    "corner boxes": (ERROR, "boxes are x, y, width, height, not x1, y1, x2, y2"),
    "malformed mask": (ERROR, "the frameworks stop at it, or read another mask"),
    "invalid polygon": (ERROR, "training drops it; evaluation of masks stops or reads another"),
    "mask outside the picture": (ERROR, "it has nothing to show"),
    "no mask": (ERROR, "a mask head cannot learn from it, or training stops"),
    "zero box": (WARNING, "the frameworks drop it"),
    "box over the border": (WARNING, "it is clipped; boxes are x, y, width, height"),
    "picture without annotations": (WARNING, "the frameworks leave it out of training"),
    "class without annotations": (WARNING, "it cannot be learned"),
    "picture listed twice": (WARNING, "it counts twice"),
    "rotated by EXIF": (WARNING, "the frameworks rotate it; check that the boxes fit"),
    "labels without a picture": (WARNING, "they are not used"),
}
# What does not matter where nothing is learned, and where nothing is evaluated.
_OF_LEARNING = ("nothing to learn", "picture without annotations", "class without annotations")
_OF_EVALUATION = ("annotation id 0",)
# What both frameworks leave out of a training, but not of an evaluation.
_DROPPED = ("invalid polygon",)
# What a training that leaves out pictures survives.
_UNREADABLE = ("missing picture", "corrupt picture", "truncated picture", "16-bit picture")
_SECONDS = 10.0  # that the check before a training spends on a data set's pictures
_SHOWN = 5  # findings of a kind that the text names


@dataclass(frozen=True)
class Finding:
    """One problem: its severity (``error`` or ``warning``), its kind, and where it is."""

    severity: str
    kind: str
    where: str


@dataclass(frozen=True)
class Report:
    """What :func:`check_data` found, errors first.

    Attributes:
        name: of the data set.
        images, annotations: their numbers in the file.
        findings: the problems.
        unopened: number of pictures for which the time was too short.

    Examples:
        >>> report = Report("pets", 2, 3, (Finding("error", "negative box", "annotation 7"),))
        >>> print(report.text())
        pets: 2 pictures, 3 annotations, 1 error, 0 warnings
        error: negative box, 1 time (dropped; boxes are x, y, width, height)
            annotation 7
    """

    name: str
    images: int
    annotations: int
    findings: tuple[Finding, ...]
    unopened: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that training would suffer from."""
        return tuple(finding for finding in self.findings if finding.severity == ERROR)

    def text(self) -> str:
        """A list by kinds, with the first places of each."""
        errors = len(self.errors)
        lines = [
            f"{self.name}: {_times(self.images, 'picture')}, "
            f"{_times(self.annotations, 'annotation')}, {_times(errors, 'error')}, "
            f"{_times(len(self.findings) - errors, 'warning')}"
        ]
        if self.unopened:
            lines.append(
                f"opened {self.images - self.unopened} of {_times(self.images, 'picture')} in the "
                "time allowed; gram-backbones check-data opens all of them"
            )
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.severity, finding.kind].append(finding.where)
        for (severity, kind), places in groups.items():
            lines.append(f"{severity}: {kind}, {_times(len(places), 'time')} ({KINDS[kind][1]})")
            lines += [f"    {place}" for place in places[:_SHOWN]]
            if len(places) > _SHOWN:
                lines.append(f"    and {len(places) - _SHOWN} more")
        return "\n".join(lines)

    def json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def check_data(
    dataset: Dataset,
    *,
    masks: bool = False,
    pictures: bool = True,
    seconds: float | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read every annotation and open every picture.

    Args:
        dataset: from :func:`gram_backbones.data.read_dataset`.
        masks: whether a mask head is to be trained, so that every annotation needs a mask.
        pictures: decode the pictures; otherwise only their headers are read, which shows size,
            orientation and bits, but no damage behind them.
        seconds: how long pictures are opened, in random order; those that remain only have to
            exist. By default, all are opened.
        workers: threads that open pictures; by default as many as ``ThreadPoolExecutor`` starts.
        progress: show a progress bar where there is a terminal.

    Raises:
        DataError: the file is no COCO JSON.
        OSError: the file cannot be read.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gram_backbones.data import read_dataset
        >>> content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}]}
        >>> content |= {"annotations": [], "categories": [{"id": 7, "name": "dog"}]}
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.json").write_text(json.dumps(content))
        ...     report = check_data(read_dataset(f"pets={folder}/train.json:{folder}"))
        >>> [finding.kind for finding in report.errors]
        ['nothing to learn', 'missing picture']
    """
    content = load_json(dataset.json_file)
    found = [*annotation_problems(content, masks)]
    found += [("labels without a picture", file) for file in dataset.without_picture]
    jobs = [
        (os.path.join(dataset.image_root, i["file_name"]), (i["width"], i["height"]))
        for i in usable(content["images"], IMAGE)
    ]
    end = None if seconds is None else time.monotonic() + seconds
    if end is not None:  # what is opened stands for the others
        jobs = random.Random(0).sample(jobs, len(jobs))

    def look(job: tuple[str, tuple[int, int]]) -> list[tuple[str, str]] | None:
        late = end is not None and time.monotonic() > end and os.path.isfile(job[0])
        return None if late else [*picture_problems(*job, decode=pictures)]

    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(look, jobs)
        hidden = None if progress else True  # None: where there is no terminal
        bar = tqdm(results, dataset.name, len(jobs), unit="picture", disable=hidden)
        opened = [problems for problems in bar if problems is not None]
    found += sorted(problem for problems in opened for problem in problems)
    order = list(KINDS)
    found.sort(key=lambda item: order.index(item[0]))  # errors come first in KINDS
    return Report(
        dataset.name,
        len(content["images"]),
        len(content["annotations"]),
        tuple(Finding(KINDS[kind][0], kind, where) for kind, where in found),
        len(jobs) - len(opened),
    )


def require_sound(
    train: Iterable[Dataset],
    val: Iterable[Dataset] = (),
    *,
    masks: bool = False,
    skip_unreadable: bool = False,
) -> list[str]:
    """The quick check before a run: annotations, and the headers of pictures for some seconds.

    Args:
        train, val: to check; those for evaluation may have pictures without annotations.
        masks: see :func:`check_data`.
        skip_unreadable: whether the training leaves out pictures that cannot be read.

    Returns:
        The reports of data sets with warnings, or with pictures that were not opened.

    Raises:
        DataError: there are errors; the message lists them.

    Examples:
        >>> require_sound([])
        []
    """
    reports = []
    for datasets, learns in ((train, True), (val, False)):
        ignored = _OF_EVALUATION if learns else _OF_LEARNING
        tolerated = _DROPPED + (_UNREADABLE if skip_unreadable else ()) if learns else ()
        for dataset in datasets:
            report = check_data(
                dataset, masks=masks, pictures=False, seconds=_SECONDS, progress=False
            )
            findings = [
                replace(f, severity=WARNING) if f.kind in tolerated else f
                for f in report.findings
                if f.kind not in ignored
            ]
            reports.append(replace(report, findings=tuple(findings)))
    if bad := [report for report in reports if report.errors]:
        raise DataError(
            "the data has errors; gram-backbones check-data lists all of them\n"
            + "\n".join(report.text() for report in bad)
        )
    return [report.text() for report in reports if report.findings or report.unopened]


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
