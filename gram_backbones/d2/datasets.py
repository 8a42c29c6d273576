"""Data sets: registration of the demo's, and a check before training that files exist."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

DEMO_SPLITS = {"gram_demo_train": "train", "gram_demo_val": "val"}
DEMO_COLORS = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]  # RGB


def register_demo_datasets() -> None:
    """Register the demo's splits below ``DETECTRON2_DATASETS``, like Detectron2's own data sets."""
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "gram_demo"
    for name, split in DEMO_SPLITS.items():
        if name not in DatasetCatalog:
            metadata = {"thing_colors": DEMO_COLORS}
            register_coco_instances(name, metadata, str(root / f"{split}.json"), str(root / split))


def check_datasets(names: Iterable[str]) -> None:
    """Check that every data set is registered and its files exist, without reading them.

    Raises:
        FileNotFoundError: a data set's annotation file or image folder is missing; the message
            lists the paths.
        ValueError: a name is not registered.
    """
    missing = []
    for name in dict.fromkeys(names):
        if name not in DatasetCatalog:
            raise ValueError(
                f"data set {name!r} is not registered; registered are {DatasetCatalog.list()}"
            )
        metadata = MetadataCatalog.get(name)
        paths = [metadata.get("json_file"), metadata.get("image_root")]
        missing += [f"  {name}: {path}" for path in paths if path and not os.path.exists(path)]
    if missing:
        root = os.environ.get("DETECTRON2_DATASETS")
        place = f"it is {root!r}" if root else "it is not set, so ./datasets is used"
        raise FileNotFoundError(
            "data set not found; these paths do not exist:\n"
            + "\n".join(missing)
            + f"\nSet DETECTRON2_DATASETS to the folder of the data sets ({place}). "
            "COCO belongs in its subfolder coco, with annotations/, train2017/ and val2017/."
        )
