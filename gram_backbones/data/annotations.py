"""Problems in the lists of a COCO JSON file: ids, boxes, masks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .masks import mask_problem

_TOLERANCE = 1.0  # pixels that a box may reach over the border, from rounding
# Fewer boxes that leave their picture may do so by chance; each is warned of.
_FEWEST_CORNERS = 10


def is_id(value: Any) -> bool:
    """Whether a value can be the id of a category or an annotation: an integer.

    Examples:
        >>> is_id(7), is_id("7"), is_id(7.0), is_id(True)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # Not math.isfinite, which fails at integers that no float can hold.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_size(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


# COCO allows strings as ids of images; the frameworks do too.
IMAGE = {
    "id": lambda value: is_id(value) or _is_text(value),
    "file_name": _is_text,
    "width": _is_size,
    "height": _is_size,
}
ANNOTATION = {
    "id": is_id,
    "image_id": IMAGE["id"],
    "category_id": is_id,
    "bbox": _is_box,
    # Both frameworks' evaluation reads these two, MMDetection already when it starts.
    "area": lambda value: _is_number(value) and value >= 0,
    "iscrowd": lambda value: value in (0, 1),
}
CATEGORY = {"id": is_id, "name": _is_text}


def usable(entries: list, keys: dict) -> list[dict[str, Any]]:
    """The entries of a list whose keys have values as they must be.

    Examples:
        >>> usable([{"id": 7, "name": "cat"}, {"id": "8", "name": "dog"}], CATEGORY)
        [{'id': 7, 'name': 'cat'}]
    """
    return [entry for entry in entries if not _bad_keys(entry, keys)]


def malformed(what: str, entries: list, keys: dict) -> Iterator[str]:
    """The other entries, each with the values that cannot be used.

    Examples:
        >>> list(malformed("category", [{"id": "8", "name": "dog"}], CATEGORY))
        ["category '8': id '8'"]
    """
    for index, entry in enumerate(entries):
        if bad := _bad_keys(entry, keys):
            has_id = isinstance(entry, dict) and "id" in entry
            named = f"{entry['id']!r}" if has_id else f"at position {index}"
            yield f"{what} {named}: {', '.join(bad)}"


def _bad_keys(entry: Any, keys: dict) -> list[str]:
    if not isinstance(entry, dict):
        return [repr(entry)]
    return [f"{k} {entry.get(k)!r}" for k, allows in keys.items() if not allows(entry.get(k))]


def annotation_problems(content: dict[str, Any], masks: bool) -> Iterator[tuple[str, str]]:
    """What is wrong in a file: kinds of :mod:`gram_backbones.data.checking` and places.

    Args:
        content: with COCO's lists ``images``, ``annotations`` and ``categories``.
        masks: every annotation needs a mask.

    Examples:
        >>> lists = {"images": [], "annotations": [], "categories": [{"id": "7", "name": "dog"}]}
        >>> list(annotation_problems(lists, masks=False))[-1]
        ('malformed entry', "category '7': id '7'")
    """
    lists = {
        "image": (content["images"], IMAGE),
        "annotation": (content["annotations"], ANNOTATION),
        "category": (content["categories"], CATEGORY),
    }
    good = {}
    for what, (entries, keys) in lists.items():
        good[what] = usable(entries, keys)
        if not good[what]:
            yield "nothing to learn", f"there is no {what} that can be used"
        if len(good[what]) < len(entries):  # a second look costs seconds in a million boxes
            for where in malformed(what, entries, keys):
                yield "malformed entry", where
        for number, count in Counter(entry["id"] for entry in good[what]).items():
            if count > 1:
                yield "duplicate id", f"{what} id {number}, {count} times"
    images = {image["id"]: image for image in good["image"]}
    if len({*map(type, images)}) > 1:
        yield "malformed entry", "the ids of images are integers and strings; one kind is allowed"
    names = {category["id"]: category["name"] for category in good["category"]}
    yield from _repeated(good["image"], good["category"])
    for annotation in good["annotation"]:
        yield from _check_annotation(annotation, images, names, masks)
    yield from _check_together(good["annotation"], images, names)


def _repeated(images: list[dict], categories: list[dict]) -> Iterator[tuple[str, str]]:
    for name, count in Counter(category["name"] for category in categories).items():
        if count > 1:
            yield "duplicate class name", f"{name}, {count} times"
    for name, count in Counter(image["file_name"] for image in images).items():
        if count > 1:
            yield "picture listed twice", f"{name}, {count} times"


def _check_annotation(
    annotation: dict[str, Any], images: dict, names: dict, masks: bool
) -> Iterator[tuple[str, str]]:
    where = f"annotation {annotation['id']}"
    image = images.get(annotation["image_id"])
    if image is None:
        yield "unknown image id", f"{where}: image id {annotation['image_id']!r}"
    else:
        where += f" of {image['file_name']}"
    if annotation["id"] == 0:
        yield "annotation id 0", where
    if annotation["category_id"] not in names:
        yield "unknown category id", f"{where}: category id {annotation['category_id']}"
    if image is None:
        return
    width, height = image["width"], image["height"]
    if kind := _box_problem(annotation["bbox"], width, height):
        yield kind, f"{where}: bbox {annotation['bbox']}, picture {width}×{height}"
    elif annotation["area"] == 0:
        yield "zero box", f"{where}: area 0"
    if segmentation := annotation.get("segmentation"):
        if problem := mask_problem(segmentation, width, height):
            kind, reason = problem
            yield kind, f"{where}: {reason}"
    elif masks:
        yield "no mask", where


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


def _check_together(
    annotations: list[dict], images: dict, names: dict
) -> Iterator[tuple[str, str]]:
    """What only all annotations together show."""
    if annotations and all(annotation["iscrowd"] for annotation in annotations):
        yield "nothing to learn", "every annotation is a crowd (iscrowd 1)"
    count = _count_corners(annotations, images)
    if count >= _FEWEST_CORNERS and count * 2 > len(annotations):
        where = f"{count} of {len(annotations)} boxes leave their picture"
        yield "corner boxes", f"{where}, and all are in it if read as x1, y1, x2, y2"
    shown = {a["image_id"] for a in annotations if not a["iscrowd"]}
    for number, image in images.items():
        if number not in shown:
            yield "picture without annotations", image["file_name"]
    learned = {annotation["category_id"] for annotation in annotations}
    for number, name in names.items():
        if number not in learned:
            yield "class without annotations", f"{name} (category id {number})"


def _count_corners(annotations: list[dict], images: dict) -> int:
    """How many boxes leave their picture; 0 unless all would be in it as two corners."""
    count = 0
    for annotation in annotations:
        if image := images.get(annotation["image_id"]):
            box, width, height = annotation["bbox"], image["width"], image["height"]
            x, y, right, bottom = box
            inside = right <= width + _TOLERANCE and bottom <= height + _TOLERANCE
            if not (0 <= x <= right and 0 <= y <= bottom and inside):
                return 0
            count += _box_problem(box, width, height) == "box over the border"
    return count
