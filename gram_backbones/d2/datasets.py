"""Data sets: registration, the classes that heads take from them, and checks before training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..data import (
    Dataset,
    PictureGuard,
    check_number,
    check_same_classes,
    read_coco,
    require_sound,
)

DEMO_SPLITS = {"gram_demo_train": "train", "gram_demo_val": "val"}
DEMO_COLORS = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]  # RGB
_WITHOUT_CLASSES = ("ProposalNetwork", "SemanticSegmentor")  # meta-architectures


def register_demo_datasets() -> None:
    """Register the demo's splits below ``DETECTRON2_DATASETS``, like Detectron2's own data sets."""
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "gram_demo"
    for name, split in DEMO_SPLITS.items():
        if name not in DatasetCatalog:
            metadata = {"thing_colors": DEMO_COLORS}
            register_coco_instances(name, metadata, str(root / f"{split}.json"), str(root / split))


def register_dataset(dataset: Dataset) -> None:
    """Register an own data set with its class names; once in every process.

    Raises:
        ValueError: another data set has this name.
    """
    places = dict(json_file=dataset.json_file, image_root=dataset.image_root)
    if dataset.name in DatasetCatalog:
        known = MetadataCatalog.get(dataset.name)
        if any(known.get(key) != place for key, place in places.items()):
            raise ValueError(
                f"a data set named {dataset.name!r} is registered already; give yours another name"
            )
        return
    metadata = {"thing_classes": list(dataset.classes)}
    register_coco_instances(dataset.name, metadata, **places)


def use_datasets(
    cfg: CfgNode, train: Dataset | None, val: Dataset | None, given: Sequence[str] = ()
) -> None:
    """Register data sets, and set ``DATASETS``, ``MODEL.CLASSES`` and every head's ``NUM_CLASSES``.

    Args:
        cfg: changed in place.
        train, val: the data sets, as far as there are any. Without ``val``, nothing is evaluated.
        given: keys that the user set. What they say must fit the data.

    Raises:
        DataError: a given ``NUM_CLASSES`` or ``MODEL.CLASSES`` contradicts the data.
        ValueError: another data set has the same name.
    """
    data = train or val
    if data is None:
        return
    for key, node in _heads(cfg.MODEL):
        if f"{key}.NUM_CLASSES" in given:
            check_number(f"{key}.NUM_CLASSES", node.NUM_CLASSES, data.name, data.classes)
        node.NUM_CLASSES = len(data.classes)
    if cfg.MODEL.CLASSES:
        check_same_classes("MODEL.CLASSES", cfg.MODEL.CLASSES, data.name, data.classes)
    cfg.MODEL.CLASSES = list(data.classes)
    for dataset in (train, val):
        if dataset:
            register_dataset(dataset)
    if train:
        cfg.DATASETS.TRAIN = (train.name,)
    cfg.DATASETS.TEST = (val.name,) if val else ()


def set_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Write the class names of registered data sets to ``MODEL.CLASSES``.

    Args:
        cfg: changed in place; untouched if no data set's classes are known.
        names: of the data sets.

    Raises:
        DataError: the heads' number of classes, ``MODEL.CLASSES``, or another of the data sets
            contradicts a data set.
    """
    for name in dict.fromkeys(names):
        classes = class_names(name)
        if classes is None:
            continue
        if head := active_head(cfg):
            number = cfg.MODEL[head].NUM_CLASSES
            check_number(f"MODEL.{head}.NUM_CLASSES", number, name, classes)
        if cfg.MODEL.CLASSES:
            check_same_classes("MODEL.CLASSES", cfg.MODEL.CLASSES, name, classes)
        cfg.MODEL.CLASSES = list(classes)


def class_names(name: str) -> Sequence[str] | None:
    """The class names of a registered data set; None if it does not tell them.

    ``register_coco_instances`` reads them with the annotations only, which is after the model has
    been built; here they are read before.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and (dataset := as_coco(name)):
        metadata.thing_classes = list(dataset.classes)
    return metadata.get("thing_classes")


class NamingMapper:
    """A mapper that names the picture in whatever error the mapper inside raises.

    Args:
        mapper: turns a record of a data set into a sample.
        may_skip: number of pictures that may be left out; Detectron2 takes others in their place.
    """

    def __init__(self, mapper: Callable[[dict], Any], may_skip: int = 0):
        self._mapper, self._guard = mapper, PictureGuard(may_skip)

    def __call__(self, record: dict) -> Any:
        """What the mapper returns, or None for a picture that is left out."""
        path = record.get("file_name", f"with id {record.get('image_id')}")
        return self._guard.read(self._mapper, record, path)


def skippable(cfg: CfgNode, pictures: int) -> int:
    """How many of a training's pictures may be left out: all but one, or none."""
    return pictures - 1 if cfg.DATALOADER.get("SKIP_UNREADABLE") else 0


def check_annotations(cfg: CfgNode, names: Sequence[str] | None = None) -> list[str]:
    """The quick check of the data sets that are COCO JSON.

    Args:
        cfg: names the data sets.
        names: those that are read; all by default.

    Returns:
        Reports with warnings.

    Raises:
        DataError: there are errors.
    """
    read = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if names is None else names
    train = [name for name in cfg.DATASETS.TRAIN if name in read]
    val = [name for name in cfg.DATASETS.TEST if name in read]
    found = [filter(None, map(as_coco, part)) for part in (train, val)]
    skip = cfg.DATALOADER.get("SKIP_UNREADABLE", False)
    return require_sound(*found, masks=cfg.MODEL.MASK_ON, skip_unreadable=skip)


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
                f"data set {name!r} is not registered. Own data is given by --dataset (training) "
                f"and --val (evaluation); registered are {DatasetCatalog.list()}"
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


def as_coco(name: str) -> Dataset | None:
    """A data set that ``register_coco_instances`` registered; None for others."""
    metadata = MetadataCatalog.get(name)
    json_file, root = metadata.get("json_file"), metadata.get("image_root")
    if metadata.get("evaluator_type") != "coco" or not json_file or not root:
        return None
    if "://" in f"{json_file} {root}":  # Detectron2 fetches it
        return None
    return read_coco(name, json_file, root)


def _heads(node: CfgNode, path: str = "MODEL") -> Iterator[tuple[str, CfgNode]]:
    """The nodes with a number of the data's classes; semantic heads count other ones."""
    for key, value in node.items():
        if isinstance(value, CfgNode) and key != "SEM_SEG_HEAD":
            if "NUM_CLASSES" in value:
                yield f"{path}.{key}", value
            yield from _heads(value, f"{path}.{key}")


def active_head(cfg: CfgNode) -> str | None:
    """The node with the number of classes of the meta-architecture in use."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in _WITHOUT_CLASSES:
        return None
    own = cfg.MODEL.get(name.upper())
    return name.upper() if isinstance(own, CfgNode) and "NUM_CLASSES" in own else "ROI_HEADS"
