"""Kinds of pictures in MMDetection's pipelines, and trainings that leave out unreadable ones."""

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="its part of the package draws the data set")

from mmdet.registry import DATASETS
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from gram_backbones.data import DataError, PictureError
from gram_backbones.mmdet.own_data import (
    NamingPipeline,
    check_annotations,
    name_pictures,
    skip_unreadable,
)
from tests.data.test_pictures import READ, REFUSED, shown, size_for
from tests.mmdet.test_own_data import LISTED, loader_of, specs  # noqa: F401 (a fixture)


def sample(path):
    """BGR pixels of MMDetection's loading, which training and evaluation share."""
    init_default_scope("mmdet")
    width, height = size_for(path)
    pipeline = NamingPipeline(Compose([dict(type="LoadImageFromFile")]))
    return pipeline(dict(img_path=str(path), img_id=1, width=width, height=height))["img"]


@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_as_pillow_shows_them(tmp_path, name):
    READ[name](tmp_path / name)
    found, expected = sample(tmp_path / name)[:, :, ::-1], shown(tmp_path / name)
    # OpenCV converts CMYK with another rounding.
    np.testing.assert_allclose(found, expected.astype(int), atol=2 if "cmyk" in name else 0)


@pytest.mark.parametrize("name", REFUSED)
def test_other_pictures_are_named(tmp_path, name):
    REFUSED[name](tmp_path / name)
    with pytest.raises(PictureError, match=rf"^cannot read picture {tmp_path / name}: \w+: .+"):
        sample(tmp_path / name)


def test_a_training_can_leave_out_pictures(specs, tmp_path, caplog):  # noqa: F811
    pictures = sorted((tmp_path / "demo/train").glob("*.png"))
    for path in pictures[1:]:
        path.write_bytes(b"no picture")
    loader = loader_of(specs[0], LISTED)
    with pytest.raises(DataError, match="corrupt picture"):
        check_annotations(loader, masks=True)
    (warning,) = check_annotations(loader, masks=True, skip_unreadable=True)
    assert "warning: corrupt picture, 5 times" in warning
    loader["dataset"]["dataset"]["pipeline"] = [
        dict(type="LoadImageFromFile"),
        dict(type="PackDetInputs", meta_keys=("img_path",)),
    ]
    built = DATASETS.build(loader["dataset"])
    name_pictures(built)
    with pytest.raises(PictureError):
        [built[index] for index in range(6)]
    built = DATASETS.build(loader["dataset"])
    name_pictures(built)
    skip_unreadable(built)
    names = {built[index]["data_samples"].img_path for index in range(6)}
    assert names == {str(pictures[0])}
    assert "Left out a picture (1 so far): cannot read picture" in caplog.text
    pictures[0].write_bytes(b"no picture")
    with pytest.raises(PictureError):
        built[0]
