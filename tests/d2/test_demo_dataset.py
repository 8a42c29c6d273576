import hashlib
import json

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from gram_backbones.d2.demo_dataset import CLASSES, SIZE, make_demo_dataset


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return root, make_demo_dataset(root, train=24, val=4)


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


@pytest.mark.slow
def test_same_arguments_same_files_and_images_do_not_depend_on_the_count(demo, tmp_path):
    root, _ = demo
    make_demo_dataset(tmp_path / "again", train=24, val=4)
    assert digest(root) == digest(tmp_path / "again")
    make_demo_dataset(tmp_path / "fewer", train=3, val=1)
    for name in ("train/000002.png", "val/000000.png"):
        assert (root / name).read_bytes() == (tmp_path / "fewer" / name).read_bytes()
    make_demo_dataset(tmp_path / "other", train=24, val=4, seed=1)
    assert digest(root) != digest(tmp_path / "other")


def test_held_out_images_are_no_training_images(demo):
    root, _ = demo
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.png")]
    assert len(set(digests)) == 28


def test_annotations_are_coco(demo):
    root, files = demo
    coco = COCO(files["train"])
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert set(coco.getCatIds()) == {a["category_id"] for a in coco.anns.values()}
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == (SIZE, SIZE)
        # Polygons run through pixel centres and cover half a pixel less on either side.
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.25, abs=12)
        x, y, w, h = annotation["bbox"]
        assert 0 <= x < x + w <= SIZE and 0 <= y < y + h <= SIZE
        assert isinstance(annotation["segmentation"], dict) == bool(annotation["iscrowd"])


def test_it_has_what_makes_detection_hard(demo):
    root, files = demo
    annotations = json.loads(files["train"].read_text())["annotations"]
    things = [a for a in annotations if not a["iscrowd"]]
    assert any(a["iscrowd"] for a in annotations)
    sides = [max(a["bbox"][2:]) for a in things]
    assert max(sides) > 3 * min(sides)
    boxes = np.array([a["bbox"] for a in things])
    images = np.array([a["image_id"] for a in things])
    iou = mask_api.iou(boxes, boxes, [0] * len(boxes))
    overlaps = (iou > 0.05) & (images[:, None] == images) & ~np.eye(len(boxes), dtype=bool)
    assert overlaps.any()
    assert any(len(a["segmentation"]) > 1 for a in things)  # cut in two by a nearer one
    image = cv2.imread(str(root / "train" / "000000.png"))
    assert image.shape == (SIZE, SIZE, 3) and image.std() > 5
