"""The command browse: what the loaders of both frameworks feed a network."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones import cli
from gram_backbones.cli import browse
from gram_backbones.pictures import Instances, draw_cell, draw_grid

D2, MMDET = "mask_rcnn_dgnet_r50_fpn_1x", "mask-rcnn_dgnet-r50_fpn_1x_coco"
BOX = (20, 10, 60, 30)  # x, y, width, height


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Images 160 × 120 with a red box on black, and a crowd; one image has no annotations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    x, y, w, h = BOX
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[y : y + h, x : x + w] = (255, 0, 0)
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    content = dict(images=[], annotations=[], categories=[dict(id=4, name="brick")])
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        content["images"].append(dict(id=i, file_name=f"{i}.png", width=160, height=120))
    for i in range(2):
        content["annotations"].append(
            dict(id=i + 1, image_id=i, category_id=4, bbox=BOX, area=w * h, iscrowd=0)
            | dict(segmentation=[polygon])
        )
    crowd = dict(id=9, image_id=0, category_id=4, bbox=[100, 60, 40, 40], area=1600, iscrowd=1)
    counts = [160 * 120]
    content["annotations"].append(crowd | dict(segmentation=dict(size=[120, 160], counts=counts)))
    (tmp_path / "own.json").write_text(json.dumps(content))
    return "own=own.json:images"


def samples_of(config, own, *words):
    args = browse.make_parser().parse_intermixed_args(["--dataset", own, *words])
    open_config = browse._open_mmdet if config == MMDET else browse._open_d2
    return open_config(config, args)


@pytest.mark.parametrize(("module", "config"), (("detectron2", D2), ("mmdet", MMDET)))
def test_what_is_drawn_is_what_the_loader_feeds(module, config, own):
    pytest.importorskip(module)
    sets, samples = samples_of(config, own)
    assert [data.classes for data in sets] == [("brick",)]
    flipped = set()
    for path, image, found, names in islice(samples, 4 if module == "detectron2" else 2):
        assert path.endswith(("0.png", "1.png")) and list(names) == ["brick"]
        height, width, _ = image.shape
        assert width > height > 400  # scaled as in training
        objects = [i for i in range(len(found)) if not (found.crowds and found.crowds[i])]
        (index,) = objects
        red = (image[..., 0] > 128) & (image[..., 2] < 128)  # RGB, in both frameworks
        rows, columns = np.nonzero(red)
        shown = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(found.boxes[index], shown, atol=4)
        assert (found.masks[index].numpy() ^ red).mean() < 0.01
        flipped.add(columns.min() > width / 2)
    assert flipped <= {True, False}


@pytest.mark.parametrize(("module", "config"), (("detectron2", D2), ("mmdet", MMDET)))
def test_the_command_writes_a_grid_and_a_plot_for_each_set(module, config, own, tmp_path, capsys):
    pytest.importorskip(module)
    pytest.importorskip("matplotlib")
    cli.main(["browse", "--config", config, "--dataset", own, "--count", "2", "--output", "out"])
    text = capsys.readouterr().out
    assert "own: 3 pictures, 1 without annotations" in text
    assert "1 crowds" in text and "2/2 " in text
    with Image.open(tmp_path / "out/samples.png") as picture:
        assert picture.size == (2 * 480 + 6, 384)
    assert (tmp_path / "out/statistics_own.png").is_file()


def test_one_seed_gives_one_order_and_augmentation(own):
    pytest.importorskip("detectron2")
    (path, image, *_), (again, same, *_) = (next(samples_of(D2, own)[1]) for _ in range(2))
    assert path == again and np.array_equal(image, same)


def test_files_of_one_name_have_plots_of_their_own(own, tmp_path, capsys):
    pytest.importorskip("mmdet")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/own.json").write_text((tmp_path / "own.json").read_text())
    words = [MMDET, "--dataset", own, "--val", "own_val=val/own.json:images", "--count", "1"]
    cli.main(["browse", *words])
    made = {file.name for file in (tmp_path / "browse").glob("*.png")}
    assert made == {"samples.png", "statistics_own.png", "statistics_own_2.png"}
    assert "x 1067, 1 object" in (out := capsys.readouterr().out) and "1 objects" not in out


def test_a_class_that_the_file_lacks_is_named(own, tmp_path, capsys):
    pytest.importorskip("mmdet")
    for part in ("train2017", "val2017", "annotations"):
        (tmp_path / part).mkdir()
    for part in ("train", "val"):
        shutil.copy("own.json", f"annotations/instances_{part}2017.json")
    changes = ["train_dataloader.dataset.metainfo.classes=('zebra',)"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["browse", MMDET, "--data-root", ".", "--cfg-options", *changes])
    assert ended.value.code == 2 and "zebra" in capsys.readouterr().err
    assert not (tmp_path / "browse").exists()


def test_cells_have_one_size_whatever_the_images(monkeypatch):
    found = Instances(torch.tensor([[2.0, 2.0, 20.0, 30.0]]), [0])
    cells = [
        draw_cell(np.full((*shape, 3), 100, np.uint8), found, ["brick"], "a long title " * 9)
        for shape in ((40, 30), (800, 1333), (1333, 800))
    ]
    assert {cell.shape for cell in cells} == {(384, 480, 3)}
    grid = draw_grid(cells, columns=2)
    assert grid.shape == (2 * 384 + 6, 2 * 480 + 6, 3)
    assert (grid[390:, 486:] == 255).all()  # no fourth cell
    with pytest.raises(ValueError, match="there are no cells"):
        draw_grid([])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        ([], "give a config"),
        ([D2, "--output", __file__], "test_browse.py is a file; it must be a folder"),
        ([D2, "--count", "0"], "--count is 0; allowed are 1 to 60"),
        ([D2, "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["mask_rcnn_dgnet_r5_fpn_1x"], "did you mean 'mask_rcnn_dgnet_r50_fpn_1x'"),
        ([D2, "--data-root", "coco"], "--data-root is for MMDetection"),
        ([MMDET, "SEED", "1"], "'SEED' is left over; give --cfg-options KEY=VALUE"),
        ([D2, "--dataset", "own"], "data set 'own' has no name or no place"),
        ([D2, "--dataset", "own=gone.json:images"], "gone.json"),
        ([MMDET, "--data-root", "gone"], "data set not found; looked at"),
    ),
)
def test_wrong_input_ends_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    pytest.importorskip("mmdet" if MMDET in arguments else "detectron2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["browse", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
