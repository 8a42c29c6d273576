"""Which pictures a command looks at, of which categories, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import DataError, Dataset, read_dataset
from ..data.reading import load_json
from ..preprocessing import Preprocessing

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Picture(NamedTuple):
    """A picture and what is known about it.

    Attributes:
        path: of the file.
        categories: indices into the names of the categories; empty where none is known.
    """

    path: Path
    categories: tuple[int, ...] = ()


def list_pictures(places: Sequence[str]) -> tuple[list[Picture], tuple[str, ...]]:
    """The pictures that a command line names, and the names of their categories.

    Args:
        places: a data set ``name=annotations.json:images/``, whose pictures belong to every
            category annotated in them; or a folder with one folder of pictures per category; or
            files and folders of pictures, without categories.

    Returns:
        The pictures in the order of the data set or of their names, and the names of the
        categories, if any.

    Raises:
        DataError: a data set that cannot be read, or more than one place with categories.
        FileNotFoundError: there is no such place, or a folder without pictures.

    Examples:
        >>> list_pictures(["gone.jpg"])
        Traceback (most recent call last):
        FileNotFoundError: there is no picture gone.jpg
    """
    if any("=" in place and not Path(place).exists() for place in places):
        if len(places) > 1:
            raise DataError(f"{len(places)} places are given; a data set must be the only one")
        dataset = read_dataset(places[0])
        return coco_pictures(dataset), dataset.classes
    if len(places) == 1 and Path(places[0]).is_dir() and not _pictures_in(Path(places[0])):
        return _pictures_by_folder(Path(places[0]))
    pictures: list[Picture] = []
    for path in map(Path, places):
        found = [path] if path.is_file() else _pictures_in(path) if path.is_dir() else []
        if not found:
            raise FileNotFoundError(f"there is no picture {path}")
        pictures += map(Picture, found)
    return pictures, ()


def coco_pictures(dataset: Dataset) -> list[Picture]:
    """The pictures of a data set with the categories annotated in each.

    Raises:
        DataError: the data set lists no pictures, or an annotation is of none of them.
        FileNotFoundError: a picture does not exist.
    """
    content = load_json(dataset.json_file)
    index = {category: i for i, category in enumerate(dataset.category_ids)}
    found: dict[Any, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        try:
            found[annotation["image_id"]].add(index[annotation["category_id"]])
        except (KeyError, TypeError):
            raise DataError(
                f"data set {dataset.name}: an annotation is of no image or category in the file; "
                "gram-backbones check-data lists all errors"
            ) from None
    root = Path(dataset.image_root)
    pictures = [
        Picture(root / image["file_name"], tuple(sorted(found[image["id"]])))
        for image in content["images"]
    ]
    if not pictures:
        raise DataError(f"data set {dataset.name} lists no pictures")
    for picture in pictures:
        if not picture.path.is_file():
            raise FileNotFoundError(f"data set {dataset.name}: there is no {picture.path}")
    return pictures


def resized(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture, with a shorter side of ``size`` pixels.

    Examples:
        >>> resized(Image.new("RGB", (640, 480)), 224).size
        (299, 224)
    """
    scale = size / min(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def normalised(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """A network's input ``(1, 3, H, W)`` from an RGB picture.

    Examples:
        >>> from gram_backbones import DGNet
        >>> row = DGNet.find_variant("dgnet_r18")
        >>> normalised(Image.new("RGB", (640, 480)), row.preprocessing).shape
        torch.Size([1, 3, 480, 640])
    """
    pixels = np.asarray(picture, dtype=np.float32)
    if preprocessing.channel_order == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = (np.array(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    pixels = (pixels - mean) / std
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _pictures_by_folder(root: Path) -> tuple[list[Picture], tuple[str, ...]]:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    found = {folder.name: _pictures_in(folder) for folder in folders}
    if not any(found.values()):
        raise FileNotFoundError(f"there are no pictures in {root}, nor in the folders in it")
    if empty := [name for name, pictures in found.items() if not pictures]:
        raise FileNotFoundError(f"the folders {empty} of {root} have no pictures")
    pictures: Iterable[Picture] = (
        Picture(path, (i,)) for i, paths in enumerate(found.values()) for path in paths
    )
    return [*pictures], tuple(found)
