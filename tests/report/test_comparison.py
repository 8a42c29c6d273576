"""tools/compare_backbones.sh: which runs it starts, and the table of those that are complete."""

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from gram_backbones.cli.d2 import load_config, parse_args
from gram_backbones.d2.datasets import DEMO_SPLITS, register_demo_datasets
from gram_backbones.d2.demo_dataset import make_demo_dataset
from gram_backbones.report.comparison import (
    Row,
    complete_runs,
    note_cost,
    read_rows,
    to_markdown,
    write_table,
)
from tests.classification.tiny import load_tool
from tests.conftest import ROOT, check_ended_well

ROWS = "resnet18 resnet50 aognet_4m dgnet_r18_chain dgnet_r18_static dgnet_r18_dynamic".split()

# In place of python: writes down its arguments, and a checkpoint of the run.
_RECORDER = """#!/usr/bin/env bash
echo "$(basename "$1") ${@:2}" >> "$RECORD"
[[ "$*" != *"${FAILS:-nothing}"* ]] || exit 1
while (($# > 1)); do
    [[ $1 != OUTPUT_DIR ]] || { mkdir -p "$2"; touch "$2"/model_{0000049,final}.pth; }
    shift
done
"""


@pytest.fixture
def compare(tmp_path):
    """A function that calls the script; returns what it started, and the finished process."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(_RECORDER)
    python.chmod(0o755)
    record = tmp_path / "record"

    def call(*arguments, **variables):
        record.write_text("")
        env = {**os.environ, "VENV": str(tmp_path / "venv"), "RECORD": str(record), **variables}
        command = ["bash", str(ROOT / "tools/compare_backbones.sh"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        return record.read_text().splitlines(), done

    return call


def test_every_row_is_run_with_every_seed_and_seeds_come_last(compare, tmp_path, monkeypatch):
    started, done = compare("out")
    check_ended_well(done)
    assert started[0] == "make_demo_dataset.py out/datasets/gram_demo"
    runs = [line.split()[1:] for line in started if line.startswith("train_net.py")]
    folders = [run[run.index("OUTPUT_DIR") + 1] for run in runs]
    assert folders == [f"out/{row}-seed{seed}" for seed in (0, 1, 2) for row in ROWS]
    assert started[2::2] == ["summarize_comparison.py out"] * 18
    assert not [*tmp_path.glob("out/*/model_0*.pth")]
    assert len([*tmp_path.glob("out/*/model_final.pth")]) == 18


def test_rows_differ_in_their_backbone_alone(compare, monkeypatch):
    monkeypatch.setattr("gram_backbones.d2.datasets.check_datasets", lambda names: None)
    monkeypatch.setattr("gram_backbones.d2.datasets.set_classes", lambda cfg, names: None)
    started, _ = compare("out", SEEDS="4")
    configs = {}
    for line in started:
        if line.startswith("train_net.py"):
            # The recorder has joined the arguments; the schedule's steps are one.
            words = re.sub(r"\((\d+), (\d+)\)", r"(\1,\2)", line).split()[1:]
            cfg = load_config(parse_args(words))
            configs[cfg.OUTPUT_DIR] = cfg
    for part in ("SOLVER", "INPUT", "DATASETS", "TEST", "SEED"):
        assert len({str(cfg[part]) for cfg in configs.values()}) == 1, part
    stock = get_cfg().MODEL
    nodes = {"BACKBONE", "RESNETS", "AOGNET", "DGNET", "META_ARCHITECTURE"}
    for part in stock.keys() - nodes:
        assert len({str(cfg.MODEL[part]) for cfg in configs.values()}) == 1, part
    for cfg in configs.values():
        node = cfg.MODEL[cfg.MODEL.BACKBONE.NAME.split("_")[1].upper().replace("RESNET", "RESNETS")]
        assert (node.NORM, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.WEIGHTS) == ("BN", 0, "")
    assert configs["out/resnet50-seed4"].MODEL.RESNETS.DEPTH == 50


def test_complete_runs_are_skipped_and_the_others_resumed(compare, tmp_path):
    choice = dict(ROWS="resnet18 aognet_4m", SEEDS="3")
    started, done = compare("out", "SOLVER.MAX_ITER", "7", FAILS="aognet_4m-seed3", **choice)
    assert done.returncode == 1
    assert done.stderr == "compare_backbones.sh: these runs failed: aognet_4m-seed3\n"
    assert all(line.endswith(" SOLVER.MAX_ITER 7") for line in started if "train_net" in line)
    started, done = compare("out", **choice)
    check_ended_well(done)
    (run,) = [line for line in started if line.startswith("train_net.py")]
    assert "OUTPUT_DIR out/aognet_4m-seed3 SEED 3" in run and " --resume " in run
    (tmp_path / "out/datasets/gram_demo").mkdir(parents=True)
    (tmp_path / "out/datasets/gram_demo/val.json").touch()
    assert compare("out", **choice)[0] == []


def test_wrong_arguments_of_the_script_are_one_sentence(compare):
    for arguments, variables, message in (
        (("out",), {"ROWS": "resnet34"}, "there is no row resnet34; allowed are resnet18"),
        (("out",), {"SEEDS": "0 x"}, "a seed is x; allowed are whole numbers"),
        ((), {}, "it takes OUTPUT [KEY VALUE ...], not 0"),
        (("out", "SEED"), {}, "it takes OUTPUT [KEY VALUE ...], not 2"),
    ):
        started, done = compare(*arguments, **variables)
        assert not started and done.returncode == 2
        assert message in done.stderr and done.stderr.count("\n") == 1


# The table


def write_run(root, name, box, *, complete=True, max_iter=200, **model):
    folder = root / name
    folder.mkdir(parents=True)
    cfg = load_model(max_iter, **model)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": 99, "bbox/AP": 1.0, "segm/AP": 0.5},
        {"iteration": 199, "total_loss": 1.0},
        {"iteration": 200, "bbox/AP": box, "segm/AP": box / 2},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if complete:
        (folder / "complete").touch()
    return folder


def load_model(max_iter, edges="chain"):
    from gram_backbones.d2 import add_gram_backbones_config
    from gram_backbones.d2.config import get_config_file

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(get_config_file("demo_mask_rcnn_dgnet_r18_fpn"))
    cfg.SOLVER.MAX_ITER = max_iter
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DGNET.EDGES = edges
    return cfg


def test_the_table_has_complete_runs_only(tmp_path):
    write_run(tmp_path, "chain-seed0", 20.0)
    run = write_run(tmp_path, "chain-seed2", 22.0)
    write_run(tmp_path, "chain-seed1", 50.0, complete=False)
    note_cost(run, parameters=14_000_000, gflops=1.25)
    note_cost(run, seconds_per_iteration=0.5, seconds_per_image=0.125)
    (row,) = read_rows(tmp_path)
    assert row == Row(
        "chain", [0, 2], [20, 22], [10, 11], 14_000_000, 1.25, 0.5, seconds_per_image=0.125
    )
    assert write_table(tmp_path) == (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.md").read_text().splitlines()[-1] == (
        "| chain | 2 | 21.0 ± 1.4 | 10.5 ± 0.7 | 14,000,000 | 1.250 | 0.500 | 0.125 |"
    )
    (content,) = json.loads((tmp_path / "comparison.json").read_text())
    assert Row(**content) == row


def test_the_detector_is_counted_with_its_fpn(tmp_path):
    run = write_run(tmp_path, "chain-seed0", 20.0)
    load_tool(ROOT / "tools/summarize_comparison.py").count(run)
    (row,) = read_rows(tmp_path)
    # ResNet-18 has 1.814 G without the classifier at 224²; the FPN has 64 channels.
    fpn = sum(c * 64 * (40 // 2**i) ** 2 for i, c in enumerate((64, 128, 256, 512)))
    fpn += sum(9 * 64 * 64 * (40 // 2**i) ** 2 for i in range(4))
    assert row.gflops == pytest.approx(1.8136 * (160 / 224) ** 2 + fpn / 1e9, rel=1e-3)
    assert row.parameters > 11_689_512 - 513_000


def test_one_seed_has_no_spread(tmp_path):
    write_run(tmp_path, "dynamic-seed0", 20.0, edges="dynamic")
    assert "| dynamic | 1 | 20.0 | 10.0 |" in to_markdown(read_rows(tmp_path))


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no complete run"):
        complete_runs(tmp_path)
    write_run(tmp_path, "a-seed0", 20.0)
    other = write_run(tmp_path, "b-seed0", 20.0, max_iter=400)
    with pytest.raises(
        ValueError, match=r"SOLVER.MAX_ITER is 400 in .*b-seed0 and 200 in .*a-seed0"
    ):
        complete_runs(tmp_path)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["SOLVER"]["MAX_ITER"] = 200
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "metrics.json").write_text('{"iteration": 199, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="b-seed0 has no bbox/AP: it has not been evaluated"):
        read_rows(tmp_path)


# Starts a command and kills it when there is a checkpoint, as a power cut would.
_KILLER = """#!/usr/bin/env bash
"$@" &
until [[ -f $RUN/last_checkpoint ]]; do
    kill -0 $! || exit 3
    sleep 0.05
done
kill -9 $!
exit 1
"""


def register_anew():
    """Register the demo where DETECTRON2_DATASETS says now."""
    for name in DEMO_SPLITS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_demo_datasets()


@pytest.mark.slow
def test_a_tiny_real_run_is_killed_resumed_tabulated_drawn_and_timed(tmp_path, monkeypatch):
    out, killer = tmp_path / "out", tmp_path / "killer"
    run = out / "dgnet_r18_static-seed1"
    killer.write_text(_KILLER)
    killer.chmod(0o755)
    make_demo_dataset(out / "datasets/gram_demo", train=8, val=4)
    choice = {"VENV": sys.prefix, "ROWS": "dgnet_r18_static", "SEEDS": "1", "RUN": str(run)}
    env = {**os.environ, **choice, "PYTHONPATH": str(ROOT)}

    def call(command, **variables):
        return subprocess.run(command, env={**env, **variables}, capture_output=True, text=True)

    command = ["bash", str(ROOT / "tools/compare_backbones.sh"), str(out), "TEST.EVAL_PERIOD", "0"]
    command += ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "3"]
    assert call(command, LAUNCH=str(killer)).returncode == 1
    assert (run / "last_checkpoint").is_file() and not (run / "complete").exists()
    check_ended_well(call(command))
    assert "Starting training from iteration 0" in (run / "log.txt").read_text()
    assert re.search("Starting training from iteration [12]", (run / "log.txt").read_text())
    assert (run / "complete").is_file() and (out / "curves.png").is_file()
    assert "\n| dgnet_r18_static | 1 |" in (out / "comparison.md").read_text()
    with monkeypatch.context() as context:
        context.setenv("DETECTRON2_DATASETS", str(out / "datasets"))
        register_anew()
        load_tool(ROOT / "tools/summarize_comparison.py").measure_speed(run, iterations=1, images=1)
    register_anew()
    (row,) = read_rows(out)
    assert 0 < row.seconds_per_image < row.seconds_per_iteration
