"""Image classification data: folders and CIFAR by torchvision, augmentation by timm."""

from __future__ import annotations

import os
from collections.abc import Callable, Sized
from pathlib import Path
from textwrap import shorten
from typing import cast

from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision import datasets, transforms

from ..data import naming_picture
from ..lost_processes import LOADER_TIMEOUT, guard_loader
from ..preprocessing import Preprocessing
from .recipes import Recipe

_CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
DATASETS = ("folder", *_CIFAR)


def open_datasets(
    root: str | Path,
    dataset: str,
    recipe: Recipe,
    preprocessing: Preprocessing,
    *,
    download: bool = False,
    cache: bool = False,
) -> tuple[Dataset, Dataset]:
    """The training and the evaluation images; items are ``(3, H, W)`` tensors and labels.

    Args:
        root: for ``"folder"``, a folder with ``train/`` and ``val/``, each with one folder of
            images per class; for CIFAR, the folder that holds torchvision's copy of it.
        dataset: one of ``DATASETS``.
        recipe: gives the image size and the augmentation.
        preprocessing: of the network.
        download: download CIFAR if it is missing.
        cache: keep decoded images in memory, see :class:`CachedImages`.

    Raises:
        FileNotFoundError: a folder or CIFAR is missing, or a class has no images.
        ValueError: the data set is unknown, or ``train/`` and ``val/`` have different classes.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}; allowed are {DATASETS}")
    augment = build_transform(recipe, preprocessing, training=True)
    centre = build_transform(recipe, preprocessing, training=False)
    keep = CachedImages if cache else lambda images: images
    if dataset == "folder":
        if missing := [s for s in ("train", "val") if not (Path(root) / s).is_dir()]:
            raise FileNotFoundError(
                f"there is no folder {Path(root) / missing[0]}; the data folder must contain "
                "train and val, each with one folder of images per class"
            )
        train = open_folder(Path(root) / "train", augment)
        val = open_folder(Path(root) / "val", centre)
        if train.classes != val.classes:
            differing = sorted({*train.classes} ^ {*val.classes})
            raise ValueError(
                f"train and val of {root} do not have the same classes; only one of them has "
                f"{', '.join(differing[:8])}"
            )
        return keep(train), keep(val)
    try:
        train = _CIFAR[dataset](root, True, augment, download=download)
        val = _CIFAR[dataset](root, False, centre, download=download)
    except RuntimeError as error:  # raised by torchvision for missing and damaged files
        raise FileNotFoundError(
            f"{dataset} is missing or damaged in {os.fspath(root)}: give the folder that contains "
            f"{_CIFAR[dataset].base_folder}, or use --download"
        ) from error
    return keep(train), keep(val)


class CachedImages(Dataset):
    """Images that are decoded once and kept in memory; the transform runs at every access.

    For small images: 60,000 images of 32 pixels take about 0.3 GB. Each loader process keeps its
    own copies.

    Args:
        images: a data set of torchvision; its ``transform`` is moved to this one.
    """

    def __init__(self, images: datasets.VisionDataset):
        self.images, self.classes = images, images.classes
        self.transform, images.transform = images.transform, None
        self.kept: list[tuple[Image, int] | None] = [None] * len(images)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        kept = self.kept[index]
        if kept is None:
            kept = self.kept[index] = self.images[index]
        image, label = kept
        return self.transform(image), label


def open_folder(folder: Path, transform: Callable) -> datasets.ImageFolder:
    """Images and labels of a folder with one folder per class.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    try:
        return datasets.ImageFolder(folder, transform, loader=read_picture)
    except FileNotFoundError as error:
        reason = shorten(str(error), 150, placeholder=" …")
        raise FileNotFoundError(
            f"{folder} must contain one folder of images per class: {reason}"
        ) from error


def read_picture(path: str) -> Image:
    """An RGB picture from a file.

    Raises:
        PictureError: the file cannot be read; the message names its path.
    """
    with naming_picture(path):
        return datasets.folder.default_loader(path)


def build_transform(
    recipe: Recipe, preprocessing: Preprocessing, *, training: bool
) -> Callable[[Image], Tensor]:
    """A transform from an RGB picture of any size to a normalised ``(3, H, W)`` tensor.

    For evaluation, the picture is resized and its centre cropped. Its shorter side becomes 8/7 of
    the image size, as is usual on ImageNet, or the image size itself with ``padded_crop``.

    Raises:
        ValueError: the network does not take RGB.
    """
    if preprocessing.channel_order != "RGB":
        raise ValueError(f"channel_order is {preprocessing.channel_order!r}; it must be 'RGB'")
    size = recipe.image_size
    padded = recipe.augmentation == "padded_crop"
    transform = create_transform(
        size,
        is_training=training and not padded,
        color_jitter=None,
        interpolation="bilinear",
        crop_pct=1.0 if padded else 0.875,
        mean=tuple(value / 255 for value in preprocessing.mean),
        std=tuple(value / 255 for value in preprocessing.std),
    )
    if not (training and padded):
        return transform
    crop = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()]
    resize, centre, *to_tensor = transform.transforms
    return transforms.Compose([resize, centre, *crop, *to_tensor])


def count_images(images: Dataset) -> int:
    """The length of a data set, which torch's class does not declare."""
    return len(cast(Sized, images))


def training_loader(
    images: Dataset,
    batch: int,
    *,
    seed: int,
    rank: int = 0,
    count: int = 1,
    timeout: int = LOADER_TIMEOUT,
    **options,
) -> DataLoader:
    """Batches of one process. Their order depends only on the seed and the sampler's epoch.

    Args:
        images: the whole data set.
        batch: images per batch of this process; an incomplete last batch is dropped.
        seed: seed of the order.
        rank, count: rank of this process and number of processes.
        timeout: longest wait in seconds for a batch of the workers.
        options: further arguments of torch's ``DataLoader``.

    Raises:
        ValueError: fewer images than one batch.
    """
    if count_images(images) // count < batch:
        raise ValueError(
            f"{count_images(images)} training images do not fill one batch of {batch * count}; "
            "use a smaller batch size"
        )
    sampler: DistributedSampler = DistributedSampler(images, count, rank, seed=seed)
    loader = DataLoader(images, batch, sampler=sampler, drop_last=True, **options)
    return guard_loader(loader, timeout)


def evaluation_loader(
    images: Dataset,
    batch: int,
    *,
    rank: int = 0,
    count: int = 1,
    timeout: int = LOADER_TIMEOUT,
    **options,
) -> DataLoader:
    """Every ``count``-th image from ``rank`` on, so that the processes share the images."""
    own = Subset(images, range(rank, count_images(images), count))
    return guard_loader(DataLoader(own, batch, **options), timeout)
