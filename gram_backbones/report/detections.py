"""Saved predictions against the annotations: AP, precision and recall, confusions, single images.

pycocotools matches and averages as in every COCO evaluation; supervision counts confusions.
"""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"bbox": "box", "segm": "mask"}
_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_IOU = 0.5  # at which single predictions count as right


class EvaluationError(ValueError):
    """Predictions that cannot be compared with annotations; the message is a sentence."""


@dataclass(frozen=True)
class Precision:
    """AP of boxes or masks, in percent; NaN where there are no objects.

    Attributes:
        stats: ``AP``, ``AP50``, ``AP75`` and, by size, ``APs``, ``APm``, ``APl``.
        by_class: AP of each class.
        by_class_50: AP of each class at an IoU of 0.5.
        curves: precision at 101 recalls from 0 to 1, by IoU, the mean of the classes.
        class_curves: the same by class, at an IoU of 0.5.
    """

    stats: dict[str, float]
    by_class: np.ndarray
    by_class_50: np.ndarray
    curves: dict[float, np.ndarray]
    class_curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageScore:
    """How well an image was predicted at `Evaluation.threshold`.

    Attributes:
        image_id: in the annotations.
        right, false, missed: predictions that match an object of their class at an IoU of 0.5,
            those that do not, and objects without a prediction.
    """

    image_id: int
    right: int
    false: int
    missed: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, from 0 to 1; 1 where there is nothing to find."""
        total = 2 * self.right + self.false + self.missed
        return 2 * self.right / total if total else 1.0


@dataclass(frozen=True)
class Evaluation:
    """What predictions on a data set are worth.

    Attributes:
        classes: names in the order of the category ids.
        objects: number of annotated objects of each class, without crowds.
        precisions: of ``"bbox"`` and, where there are masks, ``"segm"``.
        threshold: the score at which F1 at an IoU of 0.5 is highest; see `images`, `confusion`.
        confusion: ``(K + 1, K + 1)`` counts at that score: annotated classes in rows, predicted
            ones in columns; the last row and column are the background.
        images: every image, the best first.
        truths, results: annotations and predictions of each image, in COCO's format.
        files: names of the image files.
    """

    classes: tuple[str, ...]
    objects: np.ndarray
    precisions: dict[str, Precision]
    threshold: float
    confusion: np.ndarray
    images: tuple[ImageScore, ...]
    truths: Mapping[int, list[dict[str, Any]]]
    results: Mapping[int, list[dict[str, Any]]]
    files: Mapping[int, str]
    category_ids: tuple[int, ...]


def evaluate(results: Iterable[Path], annotations: str | Path) -> Evaluation:
    """Compare files of COCO results with annotations.

    Args:
        results: of boxes, masks or both, in one or several files.
        annotations: COCO JSON.

    Raises:
        EvaluationError: there are no predictions, or they are not of these annotations.
        ImportError: pycocotools or supervision is missing.
        OSError: a file cannot be read.

    Examples:
        >>> box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
        >>> data = {"images": [{"id": 1, "file_name": "1.jpg"}]}
        >>> data["categories"] = [{"id": 1, "name": "cat"}]
        >>> data["annotations"] = [{**box, "id": 1, "area": 81, "iscrowd": 0}]
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "val.json").write_text(json.dumps(data))
        ...     _ = Path(folder, "found.json").write_text(json.dumps([{**box, "score": 0.9}]))
        ...     found = evaluate([Path(folder, "found.json")], Path(folder, "val.json"))
        >>> round(found.precisions["bbox"].stats["AP"], 1), found.threshold
        (100.0, 0.9)
    """
    coco_api, coco_eval = _import_pycocotools()
    found = _read_results(results)
    with redirect_stdout(io.StringIO()):
        try:
            coco = coco_api(str(annotations))
        except (KeyError, ValueError) as error:
            raise EvaluationError(f"{annotations} is not COCO JSON: {error}") from error
        category_ids = tuple(sorted(coco.getCatIds()))
        _check_categories(found, category_ids)
        evaluated = {kind: _run_coco(coco, items, kind, coco_eval) for kind, items in found.items()}
    names = tuple(category["name"] for category in coco.loadCats(category_ids))
    kind = next(iter(found))
    shown = found.get("segm", found[kind])
    flags = _match_flags(evaluated[kind])
    truths = {i: coco.imgToAnns.get(i, []) for i in coco.getImgIds()}
    threshold = _best_threshold(flags)
    objects = [a["category_id"] for items in truths.values() for a in items if not _is_crowd(a)]
    return Evaluation(
        classes=names,
        objects=np.array([objects.count(index) for index in category_ids]),
        precisions={kind: _precision(result, names) for kind, result in evaluated.items()},
        threshold=threshold,
        confusion=_confusion(truths, found[kind], flags, names, category_ids, threshold),
        images=_rank(flags, threshold),
        truths=truths,
        results=_by_image(shown),
        files={i: image["file_name"] for i, image in coco.imgs.items()},
        category_ids=category_ids,
    )


def _import_pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "AP takes pycocotools, which is not installed: pip install gram-backbones[analysis]"
        ) from error
    return COCO, COCOeval


def _read_results(files: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """Results by kind. Detectron2 has boxes and masks in one file, MMDetection in two."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        try:
            items = json.loads(file.read_bytes())
        except ValueError as error:
            raise EvaluationError(f"{file} is not JSON, perhaps not yet whole: {error}") from error
        if not items:
            continue
        if not file.name.endswith(".segm.json"):
            found["bbox"] = items
        if "segmentation" in items[0]:
            found["segm"] = items
    if not found:
        raise EvaluationError("the run predicted nothing")
    return found


def _check_categories(found: dict[str, list[dict[str, Any]]], known: Iterable[int]) -> None:
    """Refuse other categories: pycocotools leaves them out, and AP would be that of the rest."""
    unknown = {item["category_id"] for items in found.values() for item in items} - {*known}
    if unknown:
        raise EvaluationError(
            f"the predictions have category id {min(unknown)}, which the annotations lack"
        )


def _run_coco(coco: Any, items: list[dict[str, Any]], kind: str, coco_eval: Any) -> Any:
    """A COCOeval that has run; pycocotools writes into the items, so they are copied."""
    # Without a box, pycocotools takes a mask's area for its size, as it does for annotations.
    dropped = {"segm": "bbox", "bbox": "segmentation"}[kind]
    copies = [{key: v for key, v in item.items() if key != dropped} for item in items]
    try:
        result = coco_eval(coco, coco.loadRes(copies), kind)
    except AssertionError as error:  # its check of the images' ids
        raise EvaluationError("the predictions are of other images than the annotations") from error
    result.evaluate()
    result.accumulate()
    result.summarize()
    return result


def _precision(result: Any, names: Sequence[str]) -> Precision:
    # (IoUs, recalls, classes, areas, numbers of detections); -1 where there are no objects.
    precision = np.where(result.eval["precision"] < 0, np.nan, result.eval["precision"])
    precision = precision[:, :, :, 0, -1]
    thresholds = result.params.iouThrs.round(2).tolist()
    by_iou = {iou: precision[thresholds.index(iou)] for iou in (0.5, 0.75, 0.9)}
    return Precision(
        stats={name: _percent(value) for name, value in zip(_STATS, result.stats)},
        by_class=100 * precision.mean((0, 1)),
        by_class_50=100 * by_iou[_IOU].mean(0),
        curves={iou: _mean_of_classes(values) for iou, values in by_iou.items()},
        class_curves={name: by_iou[_IOU][:, i] for i, name in enumerate(names)},
    )


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")


def _mean_of_classes(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values[0])
    return values[:, known].mean(1) if known.any() else values[:, 0]


@dataclass(frozen=True)
class _Flags:
    """An image's predictions and objects of one class, matched at an IoU of 0.5."""

    image_id: int
    scores: np.ndarray
    right: np.ndarray
    ids: np.ndarray
    objects: int


def _match_flags(result: Any) -> list[_Flags]:
    """For every image and class, without predictions on crowds."""
    everything = result.params.areaRng[0]
    flags = []
    for found in filter(None, result.evalImgs):
        if found["aRng"] != everything:
            continue
        kept = ~np.asarray(found["dtIgnore"][0], bool)
        matches = np.asarray(found["dtMatches"][0])[kept] > 0
        scores, ids = np.asarray(found["dtScores"])[kept], np.asarray(found["dtIds"])[kept]
        objects = int(np.sum(np.asarray(found["gtIgnore"]) == 0))
        flags.append(_Flags(found["image_id"], scores, matches, ids, objects))
    return flags


def _best_threshold(flags: Sequence[_Flags]) -> float:
    """The score at which F1 = 2 TP / (predictions + objects) is highest, to three digits."""
    scores = np.concatenate([f.scores for f in flags])
    right = np.concatenate([f.right for f in flags])
    order = np.argsort(-scores, kind="stable")
    number = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(right[order]) / (number + sum(f.objects for f in flags))
    return math.floor(1000 * scores[order][f1.argmax()]) / 1000


def _rank(flags: Sequence[_Flags], threshold: float) -> tuple[ImageScore, ...]:
    """Images by F1; of equal ones, those with more objects right, and with fewer mistakes."""
    counts: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(3, int))
    for f in flags:
        shown = f.scores >= threshold
        right = int(f.right[shown].sum())
        counts[f.image_id] += right, int(shown.sum()) - right, f.objects - right
    images = [ImageScore(image_id, *map(int, found)) for image_id, found in counts.items()]
    return tuple(sorted(images, key=lambda i: (-i.f1, -i.right, i.false + i.missed, i.image_id)))


def _confusion(
    truths: Mapping[int, list[dict[str, Any]]],
    items: list[dict[str, Any]],
    flags: Sequence[_Flags],
    names: Sequence[str],
    category_ids: Sequence[int],
    threshold: float,
) -> np.ndarray:
    try:
        from supervision import ConfusionMatrix
    except ImportError as error:
        raise ImportError(
            "the confusion matrix takes supervision, which is not installed: "
            "pip install gram-backbones[analysis]"
        ) from error
    # pycocotools numbers results from 1 in their order.
    kept = {int(i) - 1 for f in flags for i, s in zip(f.ids, f.scores) if s >= threshold}
    predicted = _by_image(items[i] for i in sorted(kept))
    index = {category: i for i, category in enumerate(category_ids)}

    def rows(found: list[dict[str, Any]], *keys: str) -> np.ndarray:
        listed = [[*corners(a), index[a["category_id"]], *(a[key] for key in keys)] for a in found]
        return np.array(listed, np.float32).reshape(-1, 5 + len(keys))

    whole = [[a for a in found if not _is_crowd(a)] for found in truths.values()]
    return ConfusionMatrix.from_tensors(
        [rows(predicted.get(i, []), "score") for i in truths],
        [rows(found) for found in whole],
        list(names),
        conf_threshold=0,
        iou_threshold=_IOU,
    ).matrix


def corners(item: Mapping[str, Any]) -> list[float]:
    """The box x1, y1, x2, y2 of an annotation or a result, in pixels; of its mask without a box.

    Examples:
        >>> corners({"bbox": [10, 20, 30, 40]})
        [10, 20, 40, 60]
    """
    box = item.get("bbox")
    if box is None:
        from pycocotools import mask

        box = mask.toBbox(item["segmentation"]).tolist()
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd"))


def _by_image(items: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found = defaultdict(list)
    for item in items:
        found[item["image_id"]].append(item)
    return dict(found)
