"""Data sets by a short text: COCO JSON, or folders of YOLO, Pascal VOC and LabelMe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic import replacing
from .annotations import CATEGORY, malformed


class DataError(ValueError):
    """A data set that cannot be used as it is, or that contradicts a config or a checkpoint."""


@dataclass(frozen=True)
class Dataset:
    """A data set in COCO's JSON format.

    Attributes:
        name: the name that frameworks register it by.
        json_file: annotations.
        image_root: folder that the file names of the pictures are relative to.
        classes: class names in the order of their category ids.
        category_ids: the ids, ascending; they may begin anywhere and have gaps.
        has_masks: whether any annotation has a mask.
        listed: class names in the order of the file.
        without_picture: annotation files of a converted folder that have no picture.

    Examples:
        >>> names = ("cat", "dog")
        >>> Dataset("pets", "pets.json", "pets", names, (3, 7), False, names).image_root
        'pets'
    """

    name: str
    json_file: str
    image_root: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    listed: tuple[str, ...]
    without_picture: tuple[str, ...] = ()


def read_dataset(
    spec: str, *, cache: str | Path | None = None, classes: Sequence[str] | None = None
) -> Dataset:
    """Read what a text names: ``name=annotations.json:images/`` or ``name=folder``.

    Args:
        spec: a COCO JSON file and the folder of its pictures; or a folder of YOLO, Pascal VOC or
            LabelMe, which the supervision library reads (``pip install "gram-backbones[data]"``).
        cache: where the COCO JSON of a converted folder is written; by default
            ``gram_backbones`` in ``XDG_CACHE_HOME``.
        classes: class names in order, for folders of Pascal VOC and LabelMe, which have no list of
            them. By default, the sorted names that occur.

    Raises:
        DataError: the text has another form, the JSON is no COCO JSON, or the folder is of no known
            format.
        FileNotFoundError: the file or a folder does not exist.
        ImportError: supervision is needed and not installed.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "dog"}]}
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.json").write_text(json.dumps(content))
        ...     data = read_dataset(f"pets={folder}/train.json:{folder}")
        >>> data.name, data.classes, data.category_ids, data.has_masks
        ('pets', ('dog',), (7,), False)
    """
    name, equals, places = spec.partition("=")
    if not (name and equals and places):
        raise DataError(
            f"data set {spec!r} has no name or no place; allowed are name=annotations.json:images/ "
            "and name=folder"
        )
    if os.path.isdir(places):
        # Imported here: only these folders need supervision.
        from .conversion import convert_folder

        digest = hashlib.sha256(os.path.abspath(places).encode()).hexdigest()[:12]
        file = Path(cache or _default_cache()) / f"{name}-{digest}.json"
        images, without_picture = convert_folder(places, file, classes)
        return replace(read_coco(name, file, images), without_picture=without_picture)
    annotations, root = _split_places(places)
    if not root:
        what = "is not a folder" if os.path.exists(places) else "does not exist"
        raise FileNotFoundError(
            f"data set {name}: {places} {what}; give name=annotations.json:images/ or name=folder"
        )
    return read_coco(name, annotations, root)


def read_pair(
    train: str | None, val: str | None, *, cache: str | Path | None = None
) -> tuple[Dataset | None, Dataset | None]:
    """Read data sets for training and evaluation, and check that they have the same classes.

    Raises:
        DataError: see :func:`read_dataset`; or the two have other classes or the same name.

    Examples:
        >>> read_pair(None, None)
        (None, None)
    """
    first = read_dataset(train, cache=cache) if train else None
    second = (
        read_dataset(val, cache=cache, classes=first.classes if first else None) if val else None
    )
    if first and second:
        if first.name == second.name:
            raise DataError(f"both data sets are named {first.name!r}; give them different names")
        if first.classes != second.classes:
            raise DataError(
                f"data set {first.name!r} has the classes {list(first.classes)}, but "
                f"{second.name!r} has {list(second.classes)}; they must be the same, in this order"
            )
    return first, second


def read_coco(name: str, json_file: str | Path, image_root: str | Path) -> Dataset:
    """The classes and masks of a COCO JSON file.

    Raises:
        DataError: it is no COCO JSON.
        FileNotFoundError: the file or the folder does not exist.

    Examples:
        >>> read_coco("pets", "gone.json", ".")
        Traceback (most recent call last):
        FileNotFoundError: data set pets: gone.json does not exist
    """
    for path in (json_file, image_root):
        if not os.path.exists(path):
            raise FileNotFoundError(f"data set {name}: {path} does not exist")
    content = load_json(json_file)
    categories = content["categories"]
    if bad := [*malformed("category", categories, CATEGORY)]:
        raise DataError(
            f"{json_file} has {len(bad)} malformed categories; an id is an integer, a name a text:"
            + "".join(f"\n    {where}" for where in bad)
        )
    ordered = sorted(categories, key=lambda category: category["id"])
    return Dataset(
        name,
        str(json_file),
        str(image_root),
        tuple(category["name"] for category in ordered),
        tuple(category["id"] for category in ordered),
        any(isinstance(a, dict) and a.get("segmentation") for a in content["annotations"]),
        tuple(category["name"] for category in categories),
    )


def load_json(json_file: str | Path) -> dict[str, Any]:
    """The content of a COCO JSON file.

    Raises:
        DataError: it is not JSON, or lacks one of COCO's lists.

    Examples:
        >>> load_json(os.devnull)
        Traceback (most recent call last):
        gram_backbones.data.reading.DataError: cannot read ...: it is not JSON (Expecting value...
    """
    try:
        content = json.loads(Path(json_file).read_bytes())
    except (RecursionError, ValueError) as error:
        raise DataError(f"cannot read {json_file}: it is not JSON ({error})") from error
    if isinstance(content, dict):  # COCO's files of test pictures have none
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{json_file} is not in COCO's format: it has no list {key!r}")
    return content


def in_id_order(dataset: Dataset, folder: str | Path) -> Dataset:
    """The data set, with its categories listed by ascending id.

    pycocotools, and with it MMDetection, numbers classes by their order in the file. If that order
    differs, a sorted copy of the file is written to ``folder``.

    Raises:
        OSError: the copy cannot be written.

    Examples:
        >>> names = ("cat", "dog")
        >>> data = Dataset("pets", "pets.json", "pets", names, (3, 7), False, names)
        >>> in_id_order(data, "output") is data
        True
    """
    if dataset.listed == dataset.classes:
        return dataset
    content = load_json(dataset.json_file)
    content["categories"].sort(key=lambda category: category["id"])
    file = Path(folder) / f"{dataset.name}.json"
    write_json(file, content)
    return replace(dataset, json_file=str(file), listed=dataset.classes)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all, in any number of processes.

    Raises:
        OSError: it cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "data/train.json"), {"images": []})
        ...     Path(folder, "data/train.json").read_text()
        '{"images": []}'
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(json.dumps(content))


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "gram_backbones"


def _split_places(places: str) -> tuple[str, str]:
    """The annotation file and the folder; at the first colon behind an existing file, if any."""
    colons = [i for i, char in enumerate(places) if char == ":"]
    for i in colons:
        if os.path.isfile(places[:i]):
            return places[:i], places[i + 1 :]
    left, _, right = places.rpartition(":")
    return left, right if left else ""
