"""``gram-backbones metrics``: AP of runs of both frameworks in one table."""

import json

import pytest

from gram_backbones import cli


@pytest.fixture
def runs(tmp_path):
    """A run of each framework."""
    (tmp_path / "first").mkdir()
    lines = (
        {"iteration": 9, "total_loss": 3.0},
        {
            "iteration": 10,
            **{"bbox/AP": 41.26, "bbox/AP50": 60.0, "bbox/AP-disc": 12.0, "bbox/AP-ring": 70.5},
            **{"segm/AP": 30.0, "segm/APl": 50.0, "segm/AP-disc": 10.0, "segm/AP-ring": 50.0},
        },
    )
    (tmp_path / "first/metrics.json").write_text("\n".join(map(json.dumps, lines)))
    folder = tmp_path / "second/20260101_120000/vis_data"
    folder.mkdir(parents=True)
    lines = (
        {"loss": 3.0, "epoch": 1, "iter": 20, "step": 20},
        {**{"coco/bbox_mAP": 0.5, "coco/bbox_mAP_s": -1.0, "coco/disc_precision": 0.25, "step": 1}},
    )
    (folder / "scalars.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_runs_stand_side_by_side(runs, capsys):
    cli.main(["metrics", str(runs / "first/metrics.json"), str(runs / "second"), "--classes"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["run", "iterations", "AP", "AP50", "AP75", "APs", "APm", "APl"],
        ["box", "first", "10", "41.3", "60.0", "–", "–", "–", "–"],
        ["box", "second", "20", "50.0", "–", "–", "–", "–", "–"],
        ["mask", "first", "10", "30.0", "–", "–", "–", "–", "50.0"],
        [],
        ["class", "first", "box", "second", "box", "first", "mask"],
        ["disc", "12.0", "25.0", "10.0"],
        ["ring", "70.5", "–", "50.0"],
    ]


@pytest.mark.parametrize(
    ("folder", "sentence"),
    (
        ("gone", "gone does not exist; give the folder of a run"),
        (".", "is not the folder of a run"),
        ("young", "there is no evaluation yet in "),
    ),
)
def test_what_is_no_evaluated_run_is_refused(folder, sentence, runs, capsys):
    (runs / "young").mkdir()
    (runs / "young/metrics.json").write_text('{"iteration": 9, "total_loss": 3.0}\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["metrics", str(runs / "first"), str(runs / folder)])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
