"""Pictures of detections, drawn alike for both frameworks."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones.pictures import (
    Instances,
    class_colours,
    complete_names,
    draw_pair,
    draw_predictions,
)

NAMES = ("cat", "dog")


def instances(*boxes, scores=None, masks=None, crowds=None, classes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(boxes, classes or [0] * len(boxes), scores, masks, crowds)


BLACK = np.zeros((400, 400, 3), np.uint8)
BOX = (100.0, 100.0, 300.0, 300.0)


def halves(picture):
    return picture[24:, :400].astype(int), picture[24:, 406:].astype(int)


def test_a_class_has_one_hue_on_both_sides_whatever_the_order_of_the_names():
    colours = []
    for names in (NAMES, NAMES[::-1]):
        index = [names.index("dog")]
        sides = (
            instances(BOX, scores=[0.9], classes=index),
            instances(BOX, classes=index),
        )
        left, right = halves(draw_pair(BLACK, *sides, names))
        assert np.array_equal(left[299, 250], right[299, 250]) and left[299, 250].any()
        colours.append(tuple(left[299, 250]))
    assert colours[0] == colours[1] == class_colours(NAMES)[1] != class_colours(NAMES)[0]


def test_many_classes_have_as_many_hues():
    assert len(set(class_colours([f"class {i}" for i in range(80)]))) == 80


def test_masks_can_be_seen_through():
    image = np.random.default_rng(0).integers(0, 256, BLACK.shape, np.uint8)
    mask = torch.zeros(1, 400, 400, dtype=torch.bool)
    mask[:, 150:290, 150:290] = True
    found = instances(BOX, scores=[0.9], masks=mask)
    left, right = halves(draw_pair(image, found, instances(), NAMES))
    assert np.array_equal(right, image)
    inside = (slice(160, 280), slice(160, 280))
    assert np.corrcoef(left[inside][..., 0].ravel(), image[inside][..., 0].ravel())[0, 1] > 0.9
    assert np.abs(left[inside] - image[inside]).mean() > 20


@pytest.mark.parametrize(
    ("found", "title", "drawn"),
    (
        (instances(BOX, BOX, scores=[0.9, 0.1]), "predicted, score >= 0.5: 1", True),
        (
            instances(BOX, scores=[0.1]),
            "predicted: none with score >= 0.5, the best 1 drawn",
            True,
        ),
        (instances(scores=[]), "predicted: nothing found", False),
    ),
)
def test_the_title_says_what_was_found(found, title, drawn, monkeypatch):
    titles = titles_of(monkeypatch)
    left, _ = halves(draw_pair(BLACK, found, None, NAMES))
    assert titles == [title, "truth: not loaded"]
    assert left.any() == drawn


def test_crowds_are_counted_apart(monkeypatch):
    titles, none = titles_of(monkeypatch), instances(scores=[])
    draw_pair(BLACK, none, instances(BOX, BOX, crowds=[False, True]), NAMES)
    draw_pair(BLACK, none, instances(), NAMES)
    assert titles[1::2] == ["truth: 1 and 1 crowd", "truth: nothing"]


def titles_of(monkeypatch):
    """The titles that are drawn from now on."""
    from gram_backbones import pictures

    titles, titled = [], pictures._titled
    monkeypatch.setattr(
        pictures, "_titled", lambda picture, title: titles.append(title) or titled(picture, title)
    )
    return titles


def test_both_frameworks_draw_the_same_picture(tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    from pycocotools import mask as coco

    from gram_backbones.d2.pictures import save_pictures
    from gram_backbones.mmdet.pictures import PicturesHook

    file = tmp_path / "photograph.png"
    Image.fromarray(np.full((120, 200, 3), 90, np.uint8)).save(file)
    mask = np.zeros((120, 200), np.uint8)
    mask[20:60, 30:90] = 1
    rle = coco.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    common = dict(category_id=1, bbox=[30, 20, 60, 40], segmentation=rle)
    truths = [dict(common, bbox_mode=1), dict(common, bbox_mode=1, iscrowd=1)]
    record = dict(file_name=str(file), image_id=7, height=120, width=200, annotations=truths)
    (tmp_path / "results.json").write_text(json.dumps([dict(common, image_id=7, score=0.75)]))
    DatasetCatalog.register("one_picture", lambda: [record])
    MetadataCatalog.get("one_picture").thing_classes = list(NAMES)
    try:
        save_pictures(str(tmp_path / "results.json"), "one_picture", str(tmp_path / "d2"))
    finally:
        DatasetCatalog.remove("one_picture")

    sample = DetDataSample(metainfo=dict(img_path=str(file), ori_shape=(120, 200)))
    here = dict(bboxes=torch.tensor([[30.0, 20.0, 90.0, 60.0]]), labels=torch.tensor([1]))
    predicted = dict(here, scores=torch.tensor([0.75]), masks=torch.tensor(mask[None] > 0))
    sample.pred_instances = InstanceData(**predicted)
    annotated = InstanceData(**here, masks=BitmapMasks(mask[None], 120, 200))
    sample.gt_instances = sample.ignored_instances = annotated
    visualizer = SimpleNamespace(dataset_meta=dict(classes=NAMES))
    runner = SimpleNamespace(work_dir=str(tmp_path), visualizer=visualizer)
    PicturesHook().after_val_iter(runner, 0, {}, [sample])

    one, other = (
        np.array(Image.open(Path(tmp_path) / folder / "photograph.png"))
        for folder in ("d2", "pictures")
    )
    assert one.shape == (24 + 400, 2 * 667 + 6, 3)
    assert np.array_equal(one, other)


def test_predictions_alone_name_the_best_that_is_left_out(monkeypatch):
    titles = titles_of(monkeypatch)
    found = instances(BOX, BOX, scores=[0.2, 0.31], classes=[0, 1])
    picture = draw_predictions(BLACK, found, NAMES)
    assert titles == ["predicted: none with score >= 0.5, best: dog 0.31"]
    assert picture.shape == (424, 400, 3) and not picture[24:].any()
    assert draw_predictions(BLACK, found, NAMES, 0.3)[24:].any()


def test_labels_do_not_cover_each_other(monkeypatch):
    from gram_backbones import pictures

    places, label = [], pictures._label
    monkeypatch.setattr(
        pictures, "_label", lambda *given: places.append(label(*given)) or places[-1]
    )
    shifted = tuple(value + 3 for value in BOX)
    draw_predictions(BLACK, instances(BOX, shifted, BOX, scores=[0.9, 0.8, 0.7]), NAMES)
    assert len(places) == 3
    for i, one in enumerate(places):
        assert not any(pictures._overlap(one, other) for other in places[:i])
    # Where there is no free place, nor one at the box, a label still lies in the picture.
    for _ in range(2):
        draw_predictions(BLACK, instances((0, -9, 400, 409), scores=[0.9]), NAMES)
        x1, y1, x2, y2 = places[-1]
        assert 0 <= x1 < x2 <= 400 and 0 <= y1 < y2 <= 400


def test_text_and_lines_grow_with_large_pictures():
    found = instances(BOX, scores=[0.9])
    lines = []
    for side in (400, 1600):
        picture = draw_predictions(np.zeros((side, side, 3), np.uint8), found, NAMES)
        banner = len(picture) - side
        lines.append((banner, int((picture[banner + 200, 250:350] > 0).any(1).sum())))
    assert lines == [(24, 2), (48, 4)]


def test_classes_without_names_are_numbered():
    assert complete_names(["cat", "dog"], 2) == ["cat", "dog"]
    assert complete_names(["cat", "dog"], 1) == ["class 0"]
