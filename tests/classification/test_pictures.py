"""Pictures that the training of a classifier cannot read."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="timm is not installed")

from gram_backbones.classification.checkpoint import read_checkpoint
from gram_backbones.classification.data import read_picture
from gram_backbones.data import PictureError
from tests.classification.tiny import (
    refused,
    tiny_recipe,
    trainer,
)
from tests.data.test_pictures import READ, REFUSED


@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_as_pillow_decodes_them(tmp_path, name):
    """ImageFolder does not rotate by EXIF, nor do the networks that were trained with it."""
    READ[name](tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(np.asarray(read_picture(str(tmp_path / name))), expected)


@pytest.mark.parametrize(
    "name", sorted(REFUSED.keys() - {"other-size.png"})
)  # folders hold no sizes
def test_other_pictures_are_named(tmp_path, name):
    REFUSED[name](tmp_path / name)
    with pytest.raises(PictureError, match=rf"^cannot read picture {tmp_path / name}: \w+: .+"):
        read_picture(str(tmp_path / name))


@pytest.mark.parametrize("workers", (0, pytest.param(1, marks=pytest.mark.slow)))
def test_a_picture_that_cannot_be_read_ends_in_one_sentence(
    tool, monkeypatch, few, tmp_path, workers
):
    root = shutil.copytree(few, tmp_path / "data")
    picture = root / "train/box/1.png"
    picture.write_bytes(picture.read_bytes()[:60])
    run = ("--model", "aognet_tiny", "--recipe", "aognet_cifar", "--data", root, "--batch-size", 16)
    run += ("--img-size", 16, "--output", tmp_path / "out", "--workers", workers, "--epochs", 1)
    assert f"cannot read picture {picture}: " in refused(tool, monkeypatch, *run)


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_leaves_the_epochs_before(few, tmp_path, monkeypatch):
    root = shutil.copytree(few, tmp_path / "data")
    run = trainer(root, tmp_path / "out", tiny_recipe())
    save = run._save

    def save_and_spoil():
        save()
        for picture in (root / "train").rglob("*.png"):
            picture.write_bytes(b"")

    monkeypatch.setattr(run, "_save", save_and_spoil)
    with pytest.raises(PictureError, match=r"train/\w+/\d.png"):
        run.run()
    saved = read_checkpoint(tmp_path / "out/last.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in saved.values())
    assert run.history[-1]["epoch"] == 1


def test_a_picture_of_the_evaluation_does_not_cost_the_epoch(few, tmp_path):
    root = shutil.copytree(few, tmp_path / "data")
    picture = root / "val/box/1.png"
    picture.write_bytes(b"")
    run = trainer(root, tmp_path / "out", tiny_recipe(epochs=1, warmup_epochs=0))
    last = tmp_path / "out/last.pth"
    with pytest.raises(PictureError, match=rf"{picture}: .* epoch 1 are saved in {last}; --resume"):
        run.run()
    saved = read_checkpoint(last)
    assert all(torch.equal(v, saved["state_dict"][n]) for n, v in run.model.state_dict().items())
    assert saved["meta"]["epoch"] == "1" and "top1" not in saved["meta"]
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.pth"]  # nor the best


@pytest.mark.slow
def test_a_run_whose_evaluation_a_picture_stopped_goes_on_as_if_nothing_had_been(few, tmp_path):
    root = shutil.copytree(few, tmp_path / "data")
    recipe = tiny_recipe(epochs=2)
    whole = trainer(root, tmp_path / "whole", recipe).run()
    picture = root / "val/box/1.png"
    content = picture.read_bytes()
    picture.write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(PictureError):
        trainer(root, out, recipe).run()
    picture.write_bytes(content)
    history = trainer(root, out, recipe, resume=out / "last.pth").run()
    timed = ("seconds", "images_per_second")
    assert [{k: v for k, v in line.items() if k not in timed} for line in history] == [
        {k: v for k, v in line.items() if k not in timed} for line in whole
    ]
    ends = [
        read_checkpoint(folder / "last.pth")["state_dict"] for folder in (out, tmp_path / "whole")
    ]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
