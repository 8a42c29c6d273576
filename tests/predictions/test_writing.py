"""Files of predictions."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones.pictures import Instances
from gram_backbones.predictions.sources import Frame, Source, find_sources, read_frames
from gram_backbones.predictions.writing import DrawnFiles, category_ids, predictions_file

cv2 = pytest.importorskip("cv2", reason="OpenCV comes with the frameworks")
NAMES = ["cat", "dog"]
PIXELS = np.zeros((30, 40, 3), np.uint8)
CLIP = Source("clip.avi", "video")


def found(masks=None):
    return Instances(torch.tensor([[1.0, 2.0, 11.5, 8.0]]), [1], [0.75], masks)


def written(folder, form, frames, content=None):
    listed = list({frame.source: None for frame in frames})
    with predictions_file(folder, form, NAMES, listed) as add:
        for frame in frames:
            add(frame, found() if content is None else content)
    (file,) = folder.iterdir()
    return file.read_text()


def images(*names):
    return [Frame(Source(name, "image"), PIXELS) for name in names]


def test_json_has_every_frame(tmp_path):
    frames = [*images("a/1.jpg"), Frame(CLIP, PIXELS, 12, 25.0)]
    content = json.loads(written(tmp_path, "json", frames))
    assert [*content] == ["a/1.jpg", "clip.avi#12"]
    one = dict(boxes=[[1.0, 2.0, 11.5, 8.0]], scores=[0.75], classes=[1], names=["dog"])
    assert content["a/1.jpg"] == one


@pytest.mark.parametrize(
    ("names", "ids"),
    ((("a/000000139.jpg", "000000285.jpg"), [139, 285]), (("7.jpg", "street.jpg"), [1, 2])),
)
def test_coco_s_results_are_read_by_pycocotools(tmp_path, names, ids):
    coco = pytest.importorskip("pycocotools.coco")
    mask = torch.zeros(1, 30, 40, dtype=torch.bool)
    mask[:, 2:8, 1:11] = True
    rows = json.loads(written(tmp_path, "coco", images(*names), found(mask)))
    assert [row["image_id"] for row in rows] == ids
    assert (rows[0]["file_name"], rows[0]["category_name"]) == (names[0].split("/")[-1], "dog")
    assert rows[0]["bbox"] == [1.0, 2.0, 10.5, 6.0]
    truth = coco.COCO()
    truth.dataset = dict(
        info={},
        images=[dict(id=i, height=30, width=40) for i in ids],
        categories=[dict(id=2, name="dog")],
        annotations=[],
    )
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "coco_results.json"))
    (first, _) = loaded.loadAnns(loaded.getAnnIds())
    assert (loaded.annToMask(first) == mask[0].numpy()).all()


def test_coco_counts_the_frames_of_a_video(tmp_path):
    frames = [Frame(CLIP, PIXELS, number, 25.0) for number in (0, 1)]
    rows = json.loads(written(tmp_path, "coco", frames))
    assert [(row["image_id"], row["frame"]) for row in rows] == [(1, 0), (2, 1)]


def test_csv_has_a_row_for_every_instance(tmp_path):
    frames = [*images("with, comma.jpg"), Frame(CLIP, PIXELS, 12, 25.0)]
    rows = [*csv.DictReader(written(tmp_path, "csv", frames).splitlines())]
    assert [(row["file"], row["frame"]) for row in rows] == [
        ("with, comma.jpg", ""),
        ("clip.avi", "12"),
    ]
    assert (rows[0]["name"], rows[0]["score"], rows[0]["x2"]) == ("dog", "0.7500", "11.50")


def test_nothing_found_is_still_a_file(tmp_path):
    nothing = Instances(torch.zeros(0, 4), [], [])
    assert json.loads(written(tmp_path, "json", images("1.jpg"), nothing))["1.jpg"]["boxes"] == []


def test_nothing_is_left_of_what_was_interrupted(tmp_path):
    (tmp_path / "predictions.json").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        with (
            predictions_file(tmp_path, "json", NAMES, [CLIP]) as add,
            DrawnFiles(tmp_path) as files,
        ):
            frame = Frame(CLIP, PIXELS, 0, 25.0)
            add(frame, found())
            files.write(frame, PIXELS)
            raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "before"


def test_images_become_pictures_and_videos_become_videos(tmp_path):
    other = Source("other.mov", "video")
    with DrawnFiles(tmp_path) as files:
        for source, number in ((CLIP, 0), (CLIP, 1), (other, 0)):
            shade = np.full((30, 40, 3), (200, 0, 0), np.uint8)
            files.write(Frame(source, PIXELS, number, 10.0), shade)
        files.write(images("street.jpg")[0], PIXELS + 9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "other.mp4", "street.png"]
    assert (np.array(Image.open(tmp_path / "street.png")) == 9).all()
    frames = [*read_frames(find_sources([str(tmp_path / "clip.mp4")])[0])]
    assert len(frames) == 2 and frames[0].rate == 10
    assert frames[0].image[..., 0].mean() > 180 and frames[0].image[..., 2].mean() < 20


def test_a_frame_is_shown_until_the_next(tmp_path):
    camera = Source("0", "camera")
    with DrawnFiles(tmp_path) as files:
        for number, red in ((2, 250), (6, 50)):
            files.write(Frame(camera, PIXELS, number, 10.0), np.full((32, 48, 3), red, np.uint8))
    frames = [*read_frames(find_sources([str(tmp_path / "camera0.mp4")])[0])]
    assert [frame.image.mean() > 150 for frame in frames] == [True] * 4 + [False]


@pytest.mark.slow  # imports MMDetection
def test_category_ids_are_coco_s_own_for_coco_s_classes():
    mmdet = pytest.importorskip("mmdet.datasets")
    names = mmdet.CocoDataset.METAINFO["classes"]
    ids = category_ids(names)
    assert (ids[0], ids[names.index("stop sign")], ids[-1]) == (1, 13, 90)
    assert category_ids(names[:79]) == [*range(1, 80)]
