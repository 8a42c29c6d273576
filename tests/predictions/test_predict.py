"""The command ``gram-backbones predict`` with the smallest detectors of both frameworks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones import cli
from gram_backbones.pictures import Instances
from tests.predictions import tiny
from tests.predictions.test_sources import save, save_video


class Stub:
    """Finds a disc of score 0.9 and a star of score 0.3 in every image."""

    names = tiny.CLASSES

    def __init__(self, config, weights, *, deploy=True):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [5.0, 5.0, 30.0, 25.0]])
        return [Instances(boxes, [0, 3], [0.9, 0.3]) for _ in images]


@pytest.fixture
def stub(monkeypatch):
    """The command with a detector that takes no time."""
    inference = pytest.importorskip("gram_backbones.d2.inference")
    made = []
    monkeypatch.setattr(
        inference, "Detector", lambda *a, **k: made.append(Stub(*a, **k)) or made[-1]
    )
    return made


CONFIG = "mask_rcnn_aognet40m_fpn_1x"


def run(*arguments):
    """The exit code."""
    try:
        cli.main(["predict", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def test_images_and_a_video_become_pictures_a_video_and_one_file(stub, tmp_path, capsys):
    inputs = [save(tmp_path / f"in/{i}.jpg", (40 + i, 30)) for i in range(3)]
    inputs.append(save_video(tmp_path / "in/clip.avi", frames=4))
    out = tmp_path / "out"
    assert (
        run(
            "--config",
            CONFIG,
            "--weights",
            "w.pth",
            tmp_path / "in",
            "--output",
            out,
            "--batch-size",
            2,
        )
        == 0
    )
    assert stub[0].sizes == [2, 2, 2, 1]
    names = ["0.png", "1.png", "2.png", "clip.mp4", "predictions.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    content = json.loads((out / "predictions.json").read_text())
    assert [*content] == [*inputs[:3], *(f"{inputs[3]}#{i}" for i in range(4))]
    assert content[inputs[0]]["scores"] == [0.9, 0.3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1/7 {inputs[0]}: 1 at a score of 0.5 or more"
    assert lines[3].startswith(f"4/7 {inputs[3]}#0") and len(lines) == 5  # not every frame


def test_the_positional_form_a_score_and_classes(stub, tmp_path):
    image, out = save(tmp_path / "1.png"), tmp_path / "out"
    options = ["--output", out, "--no-pictures", "--format", "csv"]
    assert run(CONFIG, "w.pth", image, *options, "--score", 0.3, "--classes", "star", "box") == 0
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(rows) == 2 and ",star,0.3000," in rows[1]
    assert run(CONFIG, "w.pth", image, *options, "--score", 0.31) == 0
    assert ",disc,0.9" in (out / "predictions.csv").read_text()
    assert ",star," not in (out / "predictions.csv").read_text()


def test_weights_of_a_network_alone_are_no_detector_s(stub, tmp_path, capsys):
    image, out = save(tmp_path / "1.png"), tmp_path / "out"
    assert run(CONFIG, "authors_mixup", image, "--output", out) == 2
    assert (
        "authors_mixup are weights of a network alone; give the file of" in capsys.readouterr().err
    )
    assert not stub and not out.exists()


def test_one_bad_file_is_named_and_the_rest_is_predicted(stub, tmp_path, capsys):
    good, bad = save(tmp_path / "1.png"), tmp_path / "2.png"
    bad.write_bytes(b"no picture")
    out = tmp_path / "out"
    ended = run(CONFIG, "w.pth", bad, good, "--output", out)
    assert ended == "gram-backbones predict: 1 of 2 inputs cannot be read"  # Python's exit code 1
    assert f"cannot read picture {bad}" in capsys.readouterr().err
    assert [*json.loads((out / "predictions.json").read_text())] == [good]


def test_a_bar_in_a_terminal_and_sentences_above_it(stub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    (tmp_path / "2.png").write_bytes(b"no picture")
    images = [save(tmp_path / "1.png"), tmp_path / "2.png"]
    assert run(CONFIG, "w.pth", *images, "--output", tmp_path / "out")
    out, err = capsys.readouterr()
    assert "2/2" in err and f"cannot read picture {images[1]}" in err
    assert len(out.splitlines()) == 1


def test_after_an_interruption_finished_pictures_are_kept(stub, tmp_path, capsys, monkeypatch):
    calls = []

    def interrupt(self, images):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found(self, images)

    found = Stub.__call__
    monkeypatch.setattr(Stub, "__call__", interrupt)
    images = [save(tmp_path / f"{i}.png") for i in range(3)]
    assert run(CONFIG, "w.pth", *images, "--output", tmp_path / "out") == 130
    assert "interrupted; unfinished files are not kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (
            ["IMAGE", "--classes", "triangel"],
            "there is no class 'triangel' (did you mean 'triangle'?)",
        ),
        (["--classes", "disc", "IMAGE"], "--classes takes all words after it, so put it last"),
        (["gone.jpg"], "there is no image, video or folder 'gone.jpg'"),
        (["97"], "there is no camera 97"),
        (["IMAGE", "--score", "2"], "allowed are 0 to 1"),
        (["IMAGE", "--score", "high"], "invalid"),
        (["IMAGE", "--batch-size", "0"], "at least 1"),
        (["IMAGE", "--output", "IMAGE"], "is a file; it must be a folder"),
        (["IMAGE", "--output", "FOLDER"], "is an input; choose another --output"),
    ),
)
def test_wrong_arguments(stub, tmp_path, capsys, arguments, sentence):
    image = save(tmp_path / "1.png")
    before = (tmp_path / "1.png").read_bytes()
    places = {"IMAGE": image, "FOLDER": tmp_path}
    assert run(CONFIG, "w.pth", *(places.get(a, a) for a in arguments)) == 2
    assert sentence in capsys.readouterr().err
    assert (tmp_path / "1.png").read_bytes() == before and len([*tmp_path.iterdir()]) == 1


def test_a_config_of_neither_kind_is_refused(tmp_path, capsys):
    image = save(tmp_path / "1.png")
    assert run(image, "w.pth", image) == 2
    assert "allowed are .yaml and .py files" in capsys.readouterr().err


@pytest.mark.parametrize("framework", ("d2", pytest.param("mmdet", marks=pytest.mark.slow)))
def test_both_frameworks_from_files_to_files(framework, tmp_path):
    pytest.importorskip("detectron2" if framework == "d2" else "mmdet")
    config, weights = getattr(tiny, f"write_{framework}")(tmp_path)
    sizes = ((96, 64), (64, 80))
    images = [save(tmp_path / f"in/{i}.png", size) for i, size in enumerate(sizes)]
    out = tmp_path / "out"
    options = ["--output", out, "--batch-size", 2, "--score", 0, "--format", "coco"]
    assert run("--config", config, "--weights", weights, f"{tmp_path}/in/*.png", *options) == 0
    rows = json.loads((out / "coco_results.json").read_text())
    assert {row["image_id"] for row in rows} == {0, 1}
    assert {row["segmentation"]["size"][0] for row in rows} == {64, 80}
    assert {row["category_name"] for row in rows} <= set(tiny.CLASSES)
    for image, (width, height) in zip(images, sizes):
        scale = 400 / min(width, height)
        drawn = Image.open(out / image.rpartition("/")[2])
        assert drawn.size == (round(width * scale), round(height * scale) + 24)
        assert len(np.unique(np.array(drawn)[60:].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize("framework", ("d2", pytest.param("mmdet", marks=pytest.mark.slow)))
def test_weights_that_do_not_make_the_detector_are_refused(framework, tmp_path, capsys):
    pytest.importorskip("detectron2" if framework == "d2" else "mmdet")
    config, _ = getattr(tiny, f"write_{framework}")(tmp_path)
    image = save(tmp_path / "1.png")
    for weights in (tmp_path / "gone.pth", image):
        assert run(config, weights, image, "--output", tmp_path / "out") == 2
        assert str(weights) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
