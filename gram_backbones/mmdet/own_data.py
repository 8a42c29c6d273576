"""Own data sets in MMDetection's configs, and checks before a training."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmdet.visualization import get_palette
from mmengine.config import Config
from torch import nn

from ..data import (
    Dataset,
    PictureGuard,
    check_number,
    check_same_classes,
    in_id_order,
    read_coco,
    require_sound,
)

# Heads that do not count the data's classes: objects against background, and stuff.
_OTHER_HEADS = ("rpn_head", "semantic_head")
# Arguments of a data set that do not say where it is.
_KEPT = ("backend_args", "filter_cfg", "pipeline", "test_mode")


def use_datasets(
    cfg: Config, train: Dataset | None, val: Dataset | None, given: Sequence[str] = ()
) -> None:
    """Point the loaders and evaluators to data sets; every head follows their number of classes.

    Args:
        cfg: changed in place. ``work_dir`` may get copies of the annotations, see
            :func:`gram_backbones.data.in_id_order`.
        train, val: the data sets, as far as there are any. Without ``val``, nothing is evaluated.
        given: keys that the user set on the command line. What they say must fit the data.

    Raises:
        DataError: the config's own class names, or a number of classes that is neither the
            config's data set's nor the data's, or that the user gave, contradict the data.
        ValueError: a loader joins several data sets.
    """
    data = train or val
    if data is None:
        return
    leaves = [*leaf_datasets((cfg.get("train_dataloader") or {}).get("dataset"))]
    named = [names for leaf in leaves if (names := (leaf.get("metainfo") or {}).get("classes"))]
    if named:
        check_same_classes("metainfo of the config", named[0], data.name, data.classes)
    inherited = len(named[0] if named else next(map(class_names, leaves), ()))
    for path, head in _heads(cfg.model, "model"):
        if f"{path}.num_classes" in given or head["num_classes"] != inherited:
            check_number(f"{path}.num_classes", head["num_classes"], data.name, data.classes)
        head["num_classes"] = len(data.classes)
    folder = os.path.join(cfg.work_dir, "data")
    if train:
        _use(cfg, "train", in_id_order(train, folder))
    for part in ("val", "test"):
        if val:
            if cfg.get(f"{part}_dataloader") is None:  # written by a training without --val
                cfg.val_dataloader = copy.deepcopy(cfg.test_dataloader)
                cfg.val_evaluator = copy.deepcopy(cfg.test_evaluator)
                cfg.val_cfg = dict(type="ValLoop")
            _use(cfg, part, in_id_order(val, folder))
        elif part == "val":
            cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None


def _use(cfg: Config, part: str, data: Dataset) -> None:
    loader = cfg[f"{part}_dataloader"]
    leaves = [*leaf_datasets(loader["dataset"])]
    if len(leaves) != 1:
        raise ValueError(
            f"{part}_dataloader joins {len(leaves)} data sets; --dataset and --val replace one"
        )
    leaf = leaves[0]
    if not _is_coco(leaf):
        for key in [key for key in leaf if key not in _KEPT]:
            del leaf[key]
        leaf["type"] = "CocoDataset"
    palette = get_palette("random", len(data.classes))
    leaf["metainfo"] = dict(classes=data.classes, palette=palette)
    root, file = os.path.abspath(data.image_root), os.path.abspath(data.json_file)
    leaf.update(data_root="", ann_file=file, data_prefix=dict(img=os.path.join(root, "")))
    evaluators = cfg.get(f"{part}_evaluator") or []
    for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
        if evaluator["type"] == "CocoMetric" or "ann_file" in evaluator:
            evaluator["ann_file"] = file


def leaf_datasets(dataset: Any) -> Iterator[dict]:
    """The configs of all data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not isinstance(dataset, dict) or not dataset:
        return
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets", [])
    for item in inner:
        yield from leaf_datasets(item)
    if not inner:
        yield dataset


def class_names(dataset: dict) -> tuple[str, ...]:
    """The class names that a data set's config asks for.

    Empty if it reads them from a file, or if the heads count others: only things, or words.
    """
    kind = dataset["type"]
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    known = {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    names = known.get("classes", ())
    others = "stuff_classes" in known or dataset.get("return_classes")
    return () if others or isinstance(names, str) else tuple(names)


def loader_classes(loader: Any) -> tuple[str, ...]:
    """The class names of a loader's data set; empty if unknown."""
    leaves = leaf_datasets(loader["dataset"]) if isinstance(loader, Mapping) else iter(())
    return next(map(class_names, leaves), ())


def check_classes(model: nn.Module, loaders: Iterable[Any]) -> None:
    """Check that every head of a detector has as many classes as the data sets.

    Raises:
        DataError: a head has another number, or two loaders have other classes.
    """
    names = [found for loader in loaders if (found := loader_classes(loader))]
    for classes in names:
        check_same_classes("train_dataloader", names[0], "val_dataloader", classes)
        for name, number in head_numbers(model).items():
            check_number(f"{name}.num_classes", number, "metainfo", classes)


def head_numbers(model: nn.Module) -> dict[str, int]:
    """The number of classes of every head of a detector, by the head's name."""
    numbers = {name: getattr(part, "num_classes", None) for name, part in model.named_modules()}
    return {k: n for k, n in numbers.items() if isinstance(n, int) and _counts_classes(k)}


def check_annotations(
    train: Any, val: Any = None, *, masks: bool, skip_unreadable: bool = False
) -> list[str]:
    """The quick check of the data sets that are COCO JSON, and of the classes chosen from them.

    Args:
        train, val: configs of the loaders.
        masks: whether a mask head is trained.
        skip_unreadable: whether the training leaves out pictures that cannot be read.

    Returns:
        Warnings.

    Raises:
        DataError: the annotations have errors, or lack a class of the config.
        FileNotFoundError: the annotations or the folder of the pictures are missing.
    """
    found: list[list[Dataset]] = []
    warnings = []
    for loader in (train, val):
        found.append([])
        for leaf in leaf_datasets(loader["dataset"]) if isinstance(loader, Mapping) else ():
            if not _is_coco(leaf) or (data := as_coco(leaf)) is None:
                continue
            found[-1].append(data)
            if left := classes_left_out(leaf, data):
                warnings.append(f"{data.name}: the config leaves out the classes {left}")
    return warnings + require_sound(*found, masks=masks, skip_unreadable=skip_unreadable)


def classes_left_out(leaf: dict, data: Dataset) -> list[str]:
    """The classes of a data set's file that its config does not choose.

    Raises:
        DataError: the file lacks a chosen class, or has them in another order.
    """
    names = class_names(leaf)
    if not names:
        return []
    # MMDetection numbers classes by their order in the file.
    if list(names) != [name for name in data.listed if name in names]:
        check_same_classes("metainfo of the config", names, data.name, data.listed)
    return [name for name in data.listed if name not in names]


class NamingPipeline:
    """A pipeline that names the picture in whatever error the pipeline inside raises."""

    def __init__(self, pipeline: Callable):
        self._pipeline = pipeline
        self.guard = PictureGuard()

    def __call__(self, data: dict) -> Any:
        """What the pipeline returns, or None for a picture that is left out."""
        path = data.get("img_path", f"with id {data.get('img_id')}")
        size = (data["width"], data["height"]) if {"width", "height"} <= data.keys() else None
        return self.guard.read(self._pipeline, data, path, size)

    def __getattr__(self, name: str) -> Any:
        if name == "_pipeline" or name.startswith("__"):  # pickle asks before there is one
            raise AttributeError(name)
        return getattr(self._pipeline, name)


def name_pictures(dataset: Any) -> None:
    """Let a built data set, and those inside it, name pictures that cannot be read."""
    for leaf in _built_leaves(dataset):
        if callable(getattr(leaf, "pipeline", None)):
            leaf.pipeline = NamingPipeline(leaf.pipeline)


def skip_unreadable(dataset: Any) -> None:
    """Let a built data set leave out, and count, pictures that cannot be read.

    MMEngine takes others in their place.
    """
    for leaf in _built_leaves(dataset):
        if isinstance(pipeline := getattr(leaf, "pipeline", None), NamingPipeline):
            pipeline.guard.may_skip = len(leaf) - 1


def _built_leaves(dataset: Any) -> Iterator[Any]:
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if inner == [None]:
        yield dataset
        return
    for item in inner:
        yield from _built_leaves(item)


def _is_coco(dataset: dict) -> bool:
    """Whether it reads COCO JSON as CocoDataset does; LVIS and panoptic sets do not."""
    kind = dataset["type"]
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return getattr(kind, "load_data_list", None) is CocoDataset.load_data_list


def as_coco(dataset: dict) -> Dataset | None:
    """The COCO JSON that a data set's config names; None where it is not on this machine."""
    root = dataset.get("data_root") or ""
    prefix = (dataset.get("data_prefix") or {}).get("img") or ""
    places = [
        path if "://" in path else os.path.join(root, path)
        for path in (dataset.get("ann_file") or "", prefix)
    ]
    if not places[0] or any("://" in place for place in places):  # MMEngine fetches it
        return None
    return read_coco(places[0], places[0], places[1] or ".")


def _counts_classes(path: str) -> bool:
    return "head" in path and not any(name in path for name in _OTHER_HEADS)


def _heads(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """The configs inside heads that have a number of classes."""
    if isinstance(node, dict):
        if "num_classes" in node and _counts_classes(path):
            yield path, node
        for key, value in node.items():
            yield from _heads(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _heads(value, f"{path}.{index}")
