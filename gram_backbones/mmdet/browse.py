"""What MMDetection's training loader feeds a network, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..data import Dataset
from ..pictures import Instances
from .own_data import as_coco, classes_left_out, leaf_datasets
from .pictures import annotated
from .replay import is_replayable, replayable
from .runs import GramRunner


def datasets_of(cfg: Config) -> list[Dataset]:
    """The data sets for training and evaluation that are COCO JSON, named like their files.

    Of files of one name, those after the first have a number too.

    Raises:
        DataError: a file lacks a class that the config chooses.
    """
    init_default_scope("mmdet")
    loaders = [cfg.get(f"{part}_dataloader") or {} for part in ("train", "val")]
    leaves = [leaf for loader in loaders for leaf in leaf_datasets(loader.get("dataset"))]
    found: dict[str, Dataset] = {}
    for leaf in leaves:
        if data := as_coco(leaf):
            classes_left_out(leaf, data)
            stem = Path(data.json_file).stem
            name, number = stem, 1
            while name in found:
                number += 1
                name = f"{stem}_{number}"
            found[name] = replace(data, name=name)
    return [*found.values()]


def iterate_samples(
    cfg: Config, seed: int
) -> Iterator[tuple[str, np.ndarray, Instances, Sequence[str]]]:
    """Augmented samples of the training loader, one at a time, in the order of a training.

    What the data preprocessor does to batches, such as padding, comes after this.

    Args:
        cfg: with ``train_dataloader``.
        seed: of the order and the augmentation.

    Yields:
        Path of the image; the augmented image, RGB ``(H, W, 3)``; its instances, crowds among them,
        which the losses ignore; and the names of the classes.
    """
    init_default_scope("mmdet")
    loader = {**cfg.train_dataloader, "num_workers": 0, "persistent_workers": False}
    if is_replayable(loader):
        loader = replayable(loader, seed)
    loader = GramRunner.build_dataloader(loader, seed=seed)
    names = getattr(loader.dataset, "metainfo", {}).get("classes", ())
    for batch in loader:
        for inputs, sample in zip(batch["inputs"], batch["data_samples"]):
            image = inputs.permute(1, 2, 0).numpy()[:, :, ::-1]  # MMDetection's loaders read BGR
            nothing = Instances(torch.zeros(0, 4), [])
            found = annotated(sample, sample.img_shape) or nothing
            yield sample.img_path, np.ascontiguousarray(image), found, names
