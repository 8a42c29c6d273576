"""Saved predictions against annotations whose AP and mistakes are known."""

import json

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
pytest.importorskip("supervision", reason="supervision is not installed")

from gram_backbones.report.detections import EvaluationError, corners, evaluate
from tests.report.made_runs import CLASSES, make_data, predict


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data")[0]


def write(file, results):
    file.write_text(json.dumps(results))
    return file


def test_perfect_predictions(data, tmp_path):
    found = evaluate([write(tmp_path / "results.json", predict(data, mistaken=None))], data)
    assert found.classes == CLASSES and found.objects.tolist() == [6, 6, 6]
    for kind in ("bbox", "segm"):
        stats = found.precisions[kind].stats
        assert stats["AP"] == pytest.approx(100) and stats["APs"] == pytest.approx(100)
        assert np.isnan(stats["APl"])  # no object is large
    assert found.confusion.tolist() == [[6, 0, 0, 0], [0, 6, 0, 0], [0, 0, 6, 0], [0, 0, 0, 0]]
    assert all(image.f1 == 1 for image in found.images)


def test_mistakes(data, tmp_path):
    """In image 1, a box is taken for a star, a star is somewhere else, and a disc is missed."""
    found = evaluate([write(tmp_path / "results.json", predict(data))], data)
    box = found.precisions["bbox"]
    # Of six objects, five are found without a mistake: the recalls up to 5/6 of 101.
    assert box.by_class[:2] == pytest.approx([100 * 84 / 101] * 2)
    assert box.by_class_50[2] == pytest.approx(100 * 84 / 101 * 5 / 7)
    assert box.stats["AP"] == pytest.approx(np.mean(box.by_class))
    assert box.curves[0.5][0] == pytest.approx((1 + 1 + 5 / 7) / 3) and box.curves[0.5][-1] == 0
    truth_in_rows = [[5, 0, 0, 1], [0, 5, 1, 0], [0, 0, 5, 1], [0, 0, 1, 0]]
    assert found.confusion.tolist() == truth_in_rows
    worst = found.images[-1]
    assert (worst.image_id, worst.right, worst.false, worst.missed) == (1, 0, 2, 3)
    assert found.images[0].f1 == 1 and worst.f1 == 0
    assert 0.88 < found.threshold < 0.9  # of the last right one, to three digits
    assert found.files[1] == "000001.png" and len(found.results[1]) == 2


def test_the_threshold_leaves_out_what_costs_more_than_it_finds(data, tmp_path):
    results = predict(data, mistaken=None)
    doubtful = [{**item, "bbox": [0, 0, 5, 5], "score": 0.2} for item in results]
    found = evaluate([write(tmp_path / "results.json", results + doubtful)], data)
    assert found.threshold == 0.882 and found.confusion[-1].sum() == 0


def test_predictions_on_crowds_are_no_mistakes(data, tmp_path):
    content = json.loads(data.read_text())
    content["annotations"][0]["iscrowd"] = 1
    data.write_text(json.dumps(content))
    results = predict(data, mistaken=None)
    found = evaluate([write(tmp_path / "results.json", [*results, results[0]])], data)
    assert found.confusion.sum() == 17 and found.confusion[-1].sum() == 0
    assert found.objects.sum() == 17


def test_boxes_and_masks_in_two_files(data, tmp_path):
    results = predict(data)
    boxes = [{k: v for k, v in item.items() if k != "segmentation"} for item in results]
    masks = [{k: v for k, v in item.items() if k != "bbox"} for item in results]
    files = [write(tmp_path / "v.bbox.json", boxes), write(tmp_path / "v.segm.json", masks)]
    found = evaluate(files, data)
    one = evaluate([write(tmp_path / "results.json", results)], data)
    for kind in ("bbox", "segm"):
        assert found.precisions[kind].stats["AP"] == one.precisions[kind].stats["AP"]
    item = found.results[2][0]
    assert "bbox" not in item  # pictures take the mask's
    assert corners(item) == pytest.approx(corners(one.results[2][0]), abs=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the run predicted nothing"),
        ('[{"image_id": 1', "results.json is not JSON, perhaps not yet whole"),
        (
            '[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 1}]',
            "the predictions are of other images than the annotations",
        ),
        (
            '[{"image_id": 1, "category_id": 99, "bbox": [0, 0, 9, 9], "score": 1}]',
            "the predictions have category id 99, which the annotations lack",
        ),
    ],
)
def test_results_that_cannot_be_compared(data, tmp_path, text, message):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(EvaluationError, match=message):
        evaluate([file], data)
