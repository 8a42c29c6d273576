"""Folders of YOLO, Pascal VOC and LabelMe as COCO JSON, through the supervision library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .reading import DataError, load_json, write_json

_FORMS = (
    "YOLO (images/ and labels/, with data.yaml here or in a parent folder), "
    "Pascal VOC (JPEGImages/ and Annotations/, or .xml files next to the pictures), "
    "LabelMe (.json files next to the pictures)"
)
# What supervision raises where a file is not as it should be.
_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, ValueError)
_SUFFIXES = {"YOLO": ".txt", "Pascal VOC": ".xml", "LabelMe": ".json"}  # of annotations


def convert_folder(
    folder: str | Path, file: Path, classes: Sequence[str] | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Write a folder's annotations as COCO JSON.

    Args:
        folder: of YOLO, Pascal VOC or LabelMe.
        file: the JSON file to write.
        classes: see :func:`gram_backbones.data.read_dataset`.

    Returns:
        The folder of the pictures, and the annotation files of YOLO and Pascal VOC that have no
        picture, which supervision passes over.

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
    readers: dict[str, Callable[..., Any]] = {
        "YOLO": partial(DetectionDataset.from_yolo, data_yaml_path=str(names)),
        "Pascal VOC": DetectionDataset.from_pascal_voc,
        "LabelMe": DetectionDataset.from_labelme,
    }
    try:
        content = _convert(readers[kind], images, annotations)
    except _ERRORS as error:
        bad = [*_bad_files(kind, readers[kind], images, annotations)]
        reasons = bad or [f"{type(error).__name__}: {error}"]
        raise DataError(
            f"cannot read {folder} in {kind} format:\n    " + "\n    ".join(reasons)
        ) from error
    if kind != "YOLO":  # whose data.yaml has the order
        _renumber(content, classes, folder)
    write_json(file, content)
    if kind == "LabelMe":  # whose files name their pictures, so that a missing one is found
        return images, ()
    stems = {path.stem for path in images.iterdir() if path.suffix != _SUFFIXES[kind]}
    files = _annotation_files(kind, annotations)
    return images, tuple(str(path) for path in files if path.stem not in stems)


def _annotation_files(kind: str, annotations: Path) -> list[Path]:
    files = sorted(annotations.glob(f"*{_SUFFIXES[kind]}"))
    # LabelImg and Label Studio write the list of classes next to YOLO's labels.
    return [path for path in files if path.name != "classes.txt"]


def _convert(read: Callable[..., Any], images: Path, annotations: Path) -> dict[str, Any]:
    """COCO's lists of a folder's annotations."""
    found = read(images_directory_path=str(images), annotations_directory_path=str(annotations))
    with TemporaryDirectory() as temporary:
        part = Path(temporary) / "coco.json"
        found.as_coco(annotations_path=str(part))
        return load_json(part)


def _bad_files(
    kind: str, read: Callable[..., Any], images: Path, annotations: Path
) -> Iterator[str]:
    """Every annotation file that cannot be read with its picture, and why.

    supervision stops at the first one, so each is read in a folder of its own.
    """
    pictures = {path.stem: path for path in images.iterdir() if path.suffix != _SUFFIXES[kind]}
    for file in _annotation_files(kind, annotations):
        with TemporaryDirectory() as temporary:
            for path in filter(None, (file, pictures.get(file.stem))):
                shutil.copy(path, temporary)
            # LabelMe's files name their pictures, which need not be called like them.
            own = images if kind == "LabelMe" else Path(temporary)
            try:
                _convert(read, own, Path(temporary))
            except _ERRORS as error:
                yield f"{file}: {str(error).replace(f'{temporary}/', '')}"


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
