"""Run folders of both frameworks are read into the same names and units."""

import json
import math

import pytest

from gram_backbones.report.runs import _mmdet_points, read_run
from gram_backbones.run_record import RunRecord, config_changes, read_run_record


def write_lines(file, *lines, end="\n"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, lines)) + end)


@pytest.fixture
def d2_run(tmp_path):
    """20 iterations, an evaluation half-way and one at the end."""
    write_lines(
        tmp_path / "metrics.json",
        {"iteration": 9, "total_loss": 3.0, "loss_cls": 2.0, "lr": 0.1, "bbox/AP": 5.0},
        {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.0, "lr": 0.01},
        {"iteration": 20, "bbox/AP": 7.0, "bbox/APl": math.nan, "bbox/AP-disc": 7.5},
    )
    (tmp_path / "log.txt").write_text(
        "[11/26 13:05:32] gram_backbones.d2.runs INFO: torch\n"
        "[11/26 13:05:33] d2.data WARNING: one line\nand another\n"
        "[11/26 13:05:34] d2.data INFO: fine\n"
        "[11/26 13:05:35] d2.data WARNING: one line\nand another\n"
    )
    return tmp_path


@pytest.fixture
def mmdet_run(tmp_path):
    """Two epochs of 20 iterations, the second's last iteration not logged."""
    start = tmp_path / "20260101_120000"
    write_lines(
        start / "vis_data/scalars.json",
        {"lr": 0.1, "loss": 3.0, "loss_cls": 2.0, "epoch": 1, "iter": 20, "step": 20},
        {"coco/bbox_mAP": 0.05, "coco/bbox_mAP_s": -1.0, "time": 2.0, "step": 1},
        {"lr": 0.1, "loss": 2.0, "loss_cls": 1.0, "epoch": 2, "iter": 36, "step": 36},
        {"coco/bbox_mAP": 0.07, "coco/bbox_mAP_50": 0.2, "coco/disc_precision": 0.3, "step": 2},
    )
    (start / "20260101_120000.log").write_text(
        "2026/01/01 12:00:00 - mmengine - WARNING - careful\n"
        "Name of parameter - Initialization information\n\n"
        "backbone.stem.0.0.weight - torch.Size([16, 3, 3, 3]): \n"
        "The value is the same before and after calling `init_weights` of MaskRCNN  \n"
        "2026/01/01 12:00:01 - mmengine - INFO - Epoch(train)  [1][20/20]  lr: 1.0e-01\n"
    )
    return tmp_path


def test_detectron2(d2_run):
    run = read_run(d2_run)
    assert (run.framework, run.iterations, run.max_iterations) == ("Detectron2", 20, 0)
    assert not run.finished  # for all one knows
    assert run.scalars["bbox/AP"] == ((10, 5.0), (20, 7.0))
    assert run.losses == ["total_loss", "loss_cls"]
    assert run.precisions == {"bbox/AP": 7.0, "bbox/AP-disc": 7.5}  # no AP of large: no objects
    assert run.warnings == {"one line\nand another": 2}


def test_mmdetection(mmdet_run):
    RunRecord({}, "cpu", 0, "", epochs=3).write(mmdet_run)
    run = read_run(mmdet_run)
    assert (run.framework, run.iterations, run.max_iterations) == ("MMDetection", 40, 60)
    assert "time" not in run.scalars and not run.finished  # an evaluation's seconds
    (mmdet_run / "epoch_3.pth").touch()
    (mmdet_run / "last_checkpoint").write_text("/moved/since/epoch_3.pth")
    assert run.finished
    assert run.scalars["total_loss"] == ((20, 3.0), (36, 2.0))
    assert run.scalars["bbox/AP"] == ((20, pytest.approx(5)), (40, pytest.approx(7)))
    assert run.precisions == {"bbox/AP": pytest.approx(7), "bbox/AP50": 20.0, "bbox/AP-disc": 30.0}
    assert run.losses == ["total_loss", "loss_cls"] and run.warnings == {"careful": 1}


@pytest.mark.parametrize(
    ("line", "iterations"),
    [("Epoch(train) [3][ 4/20]  lr: 1", 44), ("Iter(train) [ 45/1000]  lr: 1", 45)],
)
def test_iterations_that_only_the_log_has(line, iterations, mmdet_run):
    with (mmdet_run / "20260101_120000/20260101_120000.log").open("a") as log:
        log.write(f"2026/01/01 12:00:02 - mmengine - INFO - {line}\n")
    assert read_run(mmdet_run).iterations == iterations


def test_evaluations_between_logged_iterations_of_mmdetection(tmp_path):
    file = tmp_path / "20260101_120000/vis_data/scalars.json"
    write_lines(file, {"loss": 3.0, "step": 50}, {"coco/bbox_mAP": 0.5, "step": 60})
    assert read_run(tmp_path).scalars["bbox/AP"] == ((60, 50.0),)


@pytest.mark.parametrize("step", (5, 50), ids=("in epochs", "in iterations"))
def test_evaluations_stand_where_they_were_made(step, tmp_path):
    """Bug: with log_metric_by_epoch=False, epochs of 10 iterations made 500 of 50."""
    file = tmp_path / "1/vis_data/scalars.json"
    write_lines(file, {"loss": 3.0, "step": 45}, {"coco/bbox_mAP": 0.5, "step": step})
    assert [at for at, _ in _mmdet_points([tmp_path / "1"], length=10)] == [45, 50]


def test_a_test_alone(tmp_path):
    start = tmp_path / "20260101_120000"
    (start / "vis_data").mkdir(parents=True)
    write_lines(start / "20260101_120000.json", {"coco/segm_mAP": 0.5, "time": 1.0}, end="")
    run = read_run(tmp_path)
    assert run.iterations == 0 and run.precisions == {"segm/AP": 50.0}


def test_an_evaluation_between_two_logged_iterations_is_no_resumed_run(tmp_path):
    """Detectron2 logs every 20 iterations, and writes an evaluation before that after it."""
    write_lines(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 29, "bbox/AP": 5.0},
        {"iteration": 44, "total_loss": 1.0},
        {"iteration": 45, "bbox/AP": 7.0},
    )
    scalars = read_run(tmp_path).scalars
    assert scalars["total_loss"] == ((20, 3.0), (40, 2.0), (45, 1.0))
    assert scalars["bbox/AP"] == ((30, 5.0), (45, 7.0))


def test_what_a_resumed_run_repeats_replaces_the_earlier(d2_run):
    with (d2_run / "metrics.json").open("a") as file:
        file.write('{"iteration": 14, "total_loss": 2.5, "lr": 0.1}\n')
    assert read_run(d2_run).scalars["total_loss"] == ((10, 3.0), (15, 2.5))


def test_a_line_that_is_being_written_is_left_out(d2_run):
    with (d2_run / "metrics.json").open("a") as file:
        file.write('{"iteration": 29, "total_l')
    assert read_run(d2_run).iterations == 20
    with (d2_run / "metrics.json").open("a") as file:
        file.write('\n{"iteration": 39, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="metrics.json, line 4 is not JSON"):
        read_run(d2_run)


def test_predictions_and_the_last_checkpoint(d2_run):
    RunRecord({}, "cpu", 0, "", iterations=20).write(d2_run)
    results = d2_run / "inference/val/coco_instances_results.json"
    write_lines(results, [])
    (d2_run / "model_final.pth").touch()
    (d2_run / "last_checkpoint").write_text("/moved/since/model_final.pth\n")
    run = read_run(d2_run)
    assert run.predictions == {"val": (results,)}
    assert run.checkpoint == d2_run / "model_final.pth" and run.finished


def test_what_is_no_line_of_a_log(tmp_path):
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="metrics.json is not JSON: .* can't decode byte 0xff"):
        read_run(tmp_path)
    (tmp_path / "metrics.json").unlink()
    file = tmp_path / "20260101_120000/vis_data/scalars.json"
    write_lines(file, {"loss": 3.0, "step": "one"}, {"loss": 2.0, "step": 2})
    assert read_run(tmp_path).scalars == {"total_loss": ((2, 2.0),)}


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither Detectron2's metrics.json .* nor MMDetection's"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone does not exist; give the folder of a run"):
        read_run(tmp_path / "gone")


def test_records(tmp_path):
    record = RunRecord({"torch": "2"}, "cpu", None, "", datasets={"val": ("v.json", "images")})
    record.write(tmp_path)
    assert read_run_record(tmp_path).versions == {"torch": "2"}
    (tmp_path / "run.json").write_text('{"device": "cpu"}')
    with pytest.raises(ValueError, match="run.json is not the record of a run"):
        read_run_record(tmp_path)


def test_changes_of_nested_configs():
    base = {"a": {"b": 1, "c": (1, 2)}, "d": {}}
    changed = {"a": {"b": 2, "c": [1, 2]}, "d": {"e": "x"}}
    assert config_changes(base, changed) == {"a.b": ("1", "2"), "d.e": ("–", "x")}
