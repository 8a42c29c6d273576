"""Folders of YOLO, Pascal VOC and LabelMe as COCO JSON, through the supervision library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .reading import DataError, load_json, write_json

_FORMS = (
    "YOLO (images/ and labels/, with data.yaml here or in a parent folder), "
    "Pascal VOC (JPEGImages/ and Annotations/, or .xml files next to the pictures), "
    "LabelMe (.json files next to the pictures)"
)


def convert_folder(folder: str | Path, file: Path, classes: Sequence[str] | None = None) -> Path:
    """Write a folder's annotations as COCO JSON.

    Args:
        folder: of YOLO, Pascal VOC or LabelMe.
        file: the JSON file to write.
        classes: see :func:`gram_backbones.data.read_dataset`.

    Returns:
        The folder of the pictures.

    Raises:
        DataError: the folder is of no known format, or supervision cannot read it.
        ImportError: supervision is not installed.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     convert_folder(folder, Path(folder, "coco.json"))
        Traceback (most recent call last):
        gram_backbones.data.reading.DataError: ... is of no known format; known are YOLO...
    """
    folder = Path(folder)
    kind, images, annotations, names = _recognise(folder)
    try:
        from supervision import DetectionDataset
    except ImportError as error:
        raise ImportError(
            f"{folder} is in {kind} format, and reading it needs supervision, which is not "
            'installed: pip install "gram-backbones[data]", or convert it to COCO JSON'
        ) from error
    places: dict[str, Any] = dict(
        images_directory_path=str(images), annotations_directory_path=str(annotations)
    )
    with TemporaryDirectory() as temporary:
        part = Path(temporary) / "coco.json"
        try:
            if kind == "YOLO":
                found = DetectionDataset.from_yolo(**places, data_yaml_path=str(names))
            elif kind == "Pascal VOC":
                found = DetectionDataset.from_pascal_voc(**places)
            else:
                found = DetectionDataset.from_labelme(**places)
            found.as_coco(annotations_path=str(part))
        except (ArithmeticError, AttributeError, LookupError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"cannot read {folder} in {kind} format: {reason}") from error
        content = load_json(part)
    if kind != "YOLO":  # whose data.yaml has the order
        _renumber(content, classes, folder)
    write_json(file, content)
    return images


def _recognise(folder: Path) -> tuple[str, Path, Path, Path | None]:
    """Format, folder of pictures, folder of annotations, YOLO's list of classes."""
    parts = folder.absolute().parts
    if (folder / "labels").is_dir():
        images, labels = folder / "images", folder / "labels"
    else:  # Ultralytics: images/train next to labels/train
        here = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
        images = folder
        labels = folder if here is None else Path(*parts[:here], "labels", *parts[here + 1 :])
    if images.is_dir() and labels.is_dir() and labels != images:
        parents = (folder, *folder.absolute().parents[:3])
        for path in (p / n for p in parents for n in ("data.yaml", "data.yml", "dataset.yaml")):
            if path.is_file():
                return "YOLO", images, labels, path
        raise DataError(
            f"{folder} looks like YOLO, but neither it nor a parent folder has a data.yaml, which "
            "lists the classes"
        )
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return "Pascal VOC", folder / "JPEGImages", folder / "Annotations", None
    if any(folder.glob("*.xml")):
        return "Pascal VOC", folder, folder, None
    if any("shapes" in _keys(path) for path in sorted(folder.glob("*.json"))[:3]):
        return "LabelMe", folder, folder, None
    raise DataError(f"{folder} is of no known format; known are {_FORMS}")


def _keys(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return set()
    return set(content) if isinstance(content, dict) else set()


def _renumber(content: dict[str, Any], classes: Sequence[str] | None, folder: Path) -> None:
    """Number the classes by their order, not by where they first occur.

    Otherwise two folders of one data set would number them differently.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    order = list(classes) if classes else sorted(names.values())
    if unknown := sorted(set(names.values()) - set(order)):
        raise DataError(f"{folder} has the classes {unknown}, which are none of {order}")
    for annotation in content["annotations"]:
        annotation["category_id"] = order.index(names[annotation["category_id"]]) + 1
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(order)]
