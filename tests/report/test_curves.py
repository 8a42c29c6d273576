"""Learning curves: which points are read, and what the picture shows of them."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.axes import Axes

from gram_backbones import cli
from gram_backbones.report.curves import by_row, draw_curves, read_curves


def write_lines(file, lines):
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def classifier(folder, top1):
    lines = [dict(epoch=e, top1=value, loss=2 / e) for e, value in enumerate(top1, 1)]
    return write_lines(folder / "metrics.jsonl", lines).parent


def detector(folder, *ap):
    lines = [{"iteration": 19, "total_loss": 2.5}, {"iteration": 39, "total_loss": 1.5}]
    lines += [{"iteration": 40, "bbox/AP": value, "segm/AP": value / 2} for value in ap]
    return write_lines(folder / "metrics.json", lines).parent


@pytest.fixture
def drawn(monkeypatch):
    """What is plotted: panel's title, points, look."""
    calls, plot = [], Axes.plot

    def record(axis, x, y, **look):
        calls.append((axis, [*zip(x, y)], look))
        return plot(axis, x, y, **look)

    monkeypatch.setattr(Axes, "plot", record)
    return lambda: [(axis.get_title(), points, look) for axis, points, look in calls]


def test_a_classifier_is_drawn_as_in_figure_5(tmp_path, drawn):
    run = classifier(tmp_path / "aognet", [40.0, 75.0])
    draw_curves([read_curves(run)], tmp_path / "curves.png")
    assert [(title, points) for title, points, _ in drawn()] == [
        ("top-1 error, %", [(1, 60.0), (2, 25.0)]),
        ("training loss", [(1, 2.0), (2, 1.0)]),
    ]


def test_detectors_of_both_frameworks_share_a_panel(tmp_path, drawn):
    scalars = [
        {"loss": 3.0, "lr": 0.1, "epoch": 1, "iter": 10, "step": 10},
        {"coco/bbox_mAP": 0.25, "coco/segm_mAP": 0.2, "step": 10},
    ]
    file = write_lines(tmp_path / "mm/20260101_000000/vis_data/scalars.json", scalars)
    runs = [read_curves(detector(tmp_path / "d2", 30.0)), read_curves(file)]
    draw_curves(runs, tmp_path / "curves.png", ["bbox/AP"])
    assert [points for _, points, _ in drawn()] == [[(40, 30.0)], [(10, 25.0)]]
    assert runs[1].folder == tmp_path / "mm"


def test_seeds_share_a_colour_and_have_a_mean_over_common_points(tmp_path, drawn):
    for name, top1 in {"a-seed1": [40, 52], "a-seed0": [42, 50, 54], "b": [44, 60]}.items():
        classifier(tmp_path / name, top1)
    runs = [read_curves(path) for path in sorted(tmp_path.iterdir())]
    draw_curves(runs, tmp_path / "curves.png", ["top1"])
    lines = [(points, look["color"]) for _, points, look in drawn()]
    assert lines == [
        ([(1, 42), (2, 50), (3, 54)], "C0"),
        ([(1, 40), (2, 52)], "C0"),
        ([(1, 41), (2, 51)], "C0"),
        ([(1, 44), (2, 60)], "C1"),
    ]
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert (pixels[0, 0] == 255).all() and min(pixels.shape[:2]) > 400
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (pixels == colour).all(-1).sum() > 100


def test_runs_of_one_name_in_two_folders_are_no_seeds(tmp_path):
    runs = [read_curves(detector(tmp_path / parent / "out", 1.0)) for parent in "ab"]
    assert [*by_row(runs)] == ["a/out", "b/out"]


@pytest.mark.grid
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_command_writes_the_format_of_the_name(suffix, tmp_path, capsys):
    run = detector(tmp_path / "run", 20.0)
    file = tmp_path / f"curves.{suffix}"
    cli.main(["plot", str(run / "metrics.json"), "--output", str(file)])
    assert file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")
    assert capsys.readouterr().out == f"wrote {file}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (["gone"], "gone does not exist"),
        (["."], "is not the folder of a run"),
        (["photo.png"], "photo.png has no curves; allowed are folders and files named ['metrics."),
        (["empty"], "empty has no curves: nothing has been logged yet"),
        (["broken"], "cannot read broken/metrics.jsonl, line 1: "),
        (["d2", "--metric", "bbox/AP5"], "no metric 'bbox/AP5'; the runs have total_loss, bbox/AP"),
        (["d2", "c", "--metric", "loss"], None),  # the detector has none of this name
        (["d2", "d3", "--metric", "loss"], "no metric 'loss'"),
        (["d2", "mixed", "--metric", "total_loss"], "draw these runs in two pictures"),
        (["d2", "--output", "curves.xyz"], "Format 'xyz' is not supported"),
        (["d2", "--output", "gone/curves.png"], "No such file or directory"),
    ),
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    arguments, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "empty/metrics.jsonl", [])
    write_lines(tmp_path / "broken/metrics.jsonl", ["no object"])
    write_lines(tmp_path / "mixed/metrics.jsonl", [{"epoch": 1, "total_loss": 2.0}])
    classifier(tmp_path / "c", [50.0])
    (tmp_path / "photo.png").touch()
    for name in ("d2", "d3"):
        detector(tmp_path / name, 20.0)
    before = {*tmp_path.rglob("*")}
    arguments = ["plot", "--output", "curves.png", *arguments]
    if sentence is None:
        cli.main(arguments)
        return
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and sentence in said[-1]
    assert {*tmp_path.rglob("*")} == before


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = detector(tmp_path / "run", 20.0)
    with pytest.raises(SystemExit):
        cli.main(["plot", str(run), "--output", str(tmp_path / "curves.png")])
    assert "pip install gram-backbones[analysis]" in capsys.readouterr().err
