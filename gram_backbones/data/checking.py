"""Problems of a data set that training would stumble over, or learn from."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from tqdm import tqdm

from .pictures import picture_problems
from .reading import DataError, Dataset, load_json

ERROR, WARNING = "error", "warning"
# What is looked for, and what training does about it. docs/own-data.md lists the same.
KINDS = {
    "malformed entry": (ERROR, "the frameworks stop at it"),
    "nothing to learn": (ERROR, "there are no pictures, classes or boxes"),
    "duplicate id": (ERROR, "annotations go to the wrong picture or class"),
    "duplicate class name": (ERROR, "two classes cannot be told apart"),
    "unknown image id": (ERROR, "the annotation is lost"),
    "unknown category id": (ERROR, "the annotation is lost, or training stops"),
    "missing picture": (ERROR, "training stops when it gets there"),
    "corrupt picture": (ERROR, "training stops when it gets there"),
    "truncated picture": (ERROR, "training stops, or sees grey areas"),
    "16-bit picture": (ERROR, "the frameworks clip it to 8 bits"),
    "other size": (ERROR, "boxes do not fit; Detectron2 stops"),
    "annotated before rotation": (ERROR, "boxes do not fit; the frameworks rotate by EXIF"),
    "negative box": (ERROR, "dropped; boxes are x, y, width, height"),
    "box outside the picture": (ERROR, "it has nothing to show"),
    "no mask": (ERROR, "a mask head cannot learn from it, or training stops"),
    "zero box": (WARNING, "the frameworks drop it"),
    "box over the border": (WARNING, "it is clipped; boxes are x, y, width, height"),
    "invalid polygon": (WARNING, "the frameworks drop it; 3 points or more are needed"),
    "picture without annotations": (WARNING, "the frameworks leave it out of training"),
    "class without annotations": (WARNING, "it cannot be learned"),
    "picture listed twice": (WARNING, "it counts twice"),
    "rotated by EXIF": (WARNING, "the frameworks rotate it; check that the boxes fit"),
}
# What does not matter where nothing is learned.
_OF_LEARNING = ("nothing to learn", "picture without annotations", "class without annotations")
_TOLERANCE = 1.0  # pixels that a box may reach over the border, from rounding
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
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read every annotation and open every picture.

    Args:
        dataset: from :func:`gram_backbones.data.read_dataset`.
        masks: whether a mask head is to be trained, so that every annotation needs a mask.
        pictures: decode the pictures; otherwise they only have to exist, which takes seconds.
        workers: threads that decode pictures; by default as many as ``ThreadPoolExecutor`` starts.
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
    found = [*_check_annotations(content, masks)]
    images = _usable(content["images"], _IMAGE)
    jobs = [
        (os.path.join(dataset.image_root, i["file_name"]), (i["width"], i["height"]))
        for i in images
    ]
    if pictures:
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(lambda job: [*picture_problems(*job)], jobs)
            bar = tqdm(
                results, dataset.name, len(jobs), unit="picture", disable=None if progress else True
            )
            for problems in bar:
                found += problems
    else:
        found += [("missing picture", path) for path, _ in jobs if not os.path.isfile(path)]
    order = list(KINDS)
    found.sort(key=lambda item: order.index(item[0]))  # errors come first in KINDS
    return Report(
        dataset.name,
        len(content["images"]),
        len(content["annotations"]),
        tuple(Finding(KINDS[kind][0], kind, where) for kind, where in found),
    )


def require_sound(
    train: Iterable[Dataset], val: Iterable[Dataset] = (), *, masks: bool = False
) -> list[str]:
    """The quick check before a training: annotations, and that the pictures exist.

    Args:
        train, val: to check; those for evaluation may have pictures without annotations.
        masks: see :func:`check_data`.

    Returns:
        The reports of data sets with warnings.

    Raises:
        DataError: there are errors; the message lists them.

    Examples:
        >>> require_sound([])
        []
    """
    options: dict[str, Any] = dict(masks=masks, pictures=False)
    reports = [check_data(dataset, **options) for dataset in train]
    for report in [check_data(dataset, **options) for dataset in val]:
        kept = tuple(f for f in report.findings if f.kind not in _OF_LEARNING)
        reports.append(replace(report, findings=kept))
    if bad := [report for report in reports if report.errors]:
        raise DataError(
            "the data has errors; python -m gram_backbones check-data lists all of them\n"
            + "\n".join(report.text() for report in bad)
        )
    return [report.text() for report in reports if report.findings]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


# COCO allows strings as ids of images; the frameworks do too.
_IMAGE = {
    "id": lambda value: _is_id(value) or _is_text(value),
    "file_name": _is_text,
    "width": _is_size,
    "height": _is_size,
}
_ANNOTATION = {
    "id": _is_id,
    "image_id": _IMAGE["id"],
    "category_id": _is_id,
    "bbox": _is_box,
    # Both frameworks' evaluation reads these two, MMDetection already when it starts.
    "area": lambda value: type(value) in (int, float) and value >= 0,
    "iscrowd": lambda value: value in (0, 1),
}
_CATEGORY = {"id": _is_id, "name": _is_text}


def _usable(entries: list, keys: dict) -> list[dict[str, Any]]:
    return [entry for entry in entries if not _bad_keys(entry, keys)]


def _bad_keys(entry: Any, keys: dict) -> list[str]:
    if not isinstance(entry, dict):
        return [repr(entry)]
    return [f"{k} {entry.get(k)!r}" for k, allows in keys.items() if not allows(entry.get(k))]


def _check_annotations(content: dict[str, Any], masks: bool) -> Iterator[tuple[str, str]]:
    """Problems of the annotations, as kinds and places."""
    lists = {"image": _IMAGE, "annotation": _ANNOTATION, "category": _CATEGORY}
    usable = {}
    for what, keys in lists.items():
        entries = content["categories" if what == "category" else f"{what}s"]
        usable[what] = _usable(entries, keys)
        if not usable[what]:
            yield "nothing to learn", f"there is no {what} that can be used"
        for index, entry in enumerate(entries):
            if bad := _bad_keys(entry, keys):
                named = f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else index
                yield "malformed entry", f"{what} {named}: {', '.join(bad)}"
        for number, count in Counter(entry["id"] for entry in usable[what]).items():
            if count > 1:
                yield "duplicate id", f"{what} id {number}, {count} times"
    for name, count in Counter(entry["name"] for entry in usable["category"]).items():
        if count > 1:
            yield "duplicate class name", f"{name}, {count} times"
    for name, count in Counter(entry["file_name"] for entry in usable["image"]).items():
        if count > 1:
            yield "picture listed twice", f"{name}, {count} times"
    images = {image["id"]: image for image in usable["image"]}
    names = {category["id"]: category["name"] for category in usable["category"]}
    for annotation in usable["annotation"]:
        yield from _check_annotation(annotation, images, names, masks)
    shown = {annotation["image_id"] for annotation in usable["annotation"]}
    for number, image in images.items():
        if number not in shown:
            yield "picture without annotations", image["file_name"]
    learned = {annotation["category_id"] for annotation in usable["annotation"]}
    for number, name in names.items():
        if number not in learned:
            yield "class without annotations", f"{name} (category id {number})"


def _check_annotation(
    annotation: dict[str, Any], images: dict, names: dict, masks: bool
) -> Iterator[tuple[str, str]]:
    where = f"annotation {annotation['id']}"
    image = images.get(annotation["image_id"])
    if annotation["category_id"] not in names:
        yield "unknown category id", f"{where}: category id {annotation['category_id']}"
    if image is None:
        yield "unknown image id", f"{where}: image id {annotation['image_id']}"
        return
    where += f" of {image['file_name']}"
    if kind := _box_problem(annotation["bbox"], image["width"], image["height"]):
        size = f"picture {image['width']}×{image['height']}"
        yield kind, f"{where}: bbox {annotation['bbox']}, {size}"
    segmentation = annotation.get("segmentation")
    if masks and not segmentation:
        yield "no mask", where
    elif masks and isinstance(segmentation, list):
        bad = [p for p in segmentation if not isinstance(p, list) or len(p) < 6 or len(p) % 2]
        if bad:
            yield "invalid polygon", f"{where}: {len(bad)} of {len(segmentation)} polygons"


def _box_problem(box: list[float], width: float, height: float) -> str | None:
    x, y, w, h = box
    if w < 0 or h < 0:
        return "negative box"
    if x + w <= 0 or y + h <= 0 or x >= width or y >= height:
        return "box outside the picture"
    if w == 0 or h == 0:
        return "zero box"
    over = max(-x, -y, x + w - width, y + h - height)
    return "box over the border" if over > _TOLERANCE else None


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
