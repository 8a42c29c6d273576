"""Kinds of pictures in Detectron2's mapper, and trainings that leave out those it cannot read."""

import logging

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetMapper

from gram_backbones.d2.datasets import NamingMapper
from gram_backbones.d2.engine import GramTrainer
from gram_backbones.data import DataError, PictureError
from tests.d2.test_own_data import cfg, data  # noqa: F401 (fixtures)
from tests.data.test_pictures import READ, REFUSED, shown, size_for


def sample(path, training):
    width, height = size_for(path)
    mapper = NamingMapper(DatasetMapper(training, augmentations=[], image_format="RGB"))
    record = dict(file_name=str(path), width=width, height=height, image_id=1, annotations=[])
    return mapper(record)["image"].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))
@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_as_pillow_shows_them(tmp_path, name, training):
    READ[name](tmp_path / name)
    np.testing.assert_array_equal(sample(tmp_path / name, training), shown(tmp_path / name))


@pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))
@pytest.mark.parametrize("name", REFUSED)
def test_other_pictures_are_named(tmp_path, name, training):
    REFUSED[name](tmp_path / name)
    with pytest.raises(PictureError, match=rf"^cannot read picture {tmp_path / name}: \w+: .+"):
        sample(tmp_path / name, training)


@pytest.mark.parametrize("seed", (0, -1), ids=("replayable", "stock"))
def test_a_training_can_leave_out_pictures(cfg, data, tmp_path, caplog, monkeypatch, seed):  # noqa: F811
    pictures = sorted((tmp_path / "demo/train").glob("*.png"))
    for path in pictures[1:]:
        path.write_bytes(b"no picture")
    cfg.SEED, cfg.DATALOADER.NUM_WORKERS = seed, 0
    with pytest.raises(DataError, match="corrupt picture"):
        GramTrainer(cfg)
    cfg.DATALOADER.SKIP_UNREADABLE = True
    monkeypatch.setattr(logging.getLogger("gram_backbones"), "propagate", True)
    loader = iter(GramTrainer.build_train_loader(cfg))
    names = {record["file_name"] for _ in range(4) for record in next(loader)}
    assert names == {str(pictures[0])}
    said = [r.message for r in caplog.records if r.message.startswith("Left out")]
    assert said and said[0].startswith(
        f"Left out a picture (1 so far): cannot read picture {tmp_path}"
    )
    pictures[0].write_bytes(b"no picture")
    with pytest.raises(PictureError):
        next(iter(GramTrainer.build_train_loader(cfg)))
