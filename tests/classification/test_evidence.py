"""The runs behind docs/evidence.md: which are started, and what is drawn of them."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from gram_backbones import create_model
from tests.classification.tiny import load_tool
from tests.conftest import ROOT

# In place of python: writes down its arguments, and the files of a run that ended.
_RECORDER = """#!/usr/bin/env bash
echo "${@:2}" >> "$RECORD"
while (($# > 1)); do
    [[ $1 != --output ]] || output=$2
    [[ $1 != --epochs ]] || epochs=$2
    shift
done
[[ $output != *"${FAILS:-nothing}"* ]] || exit 1
mkdir -p "$output"
yes '{}' | head -n "$epochs" > "$output/metrics.jsonl"
touch "$output/last.pth"
"""


@pytest.fixture
def evidence(tmp_path):
    """A function that calls evidence.sh and returns what it started, and the finished process."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(_RECORDER)
    python.chmod(0o755)
    record = tmp_path / "record"
    for split in ("train", "val"):
        (tmp_path / "cifar" / split).mkdir(parents=True)

    def call(*arguments, **variables):
        record.write_text("")
        env = {**os.environ, "VENV": str(tmp_path / "venv"), "RECORD": str(record), **variables}
        command = ["bash", str(ROOT / "tools/evidence.sh"), *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        return record.read_text().splitlines(), done

    return call


@pytest.mark.slow
def test_every_row_is_run_once_and_builds(evidence, tmp_path):
    started, done = evidence("cifar", "out")
    assert done.returncode == 0 and len(started) == 2 * 12
    assert all("--epochs 10 " in line and "--workers 0 --cache" in line for line in started)
    assert len({re.search(r"--output (\S+)", line)[1] for line in started}) == 24
    keyword = load_tool(ROOT / "tools/train_classifier.py").keyword
    for line in started:
        _, _, given = line.partition("--model-kwargs")
        kwargs = dict(map(keyword, given.split()))
        with torch.device("meta"):
            create_model(re.search(r"--model (\S+)", line)[1], **kwargs)


def test_complete_runs_are_skipped_and_stopped_ones_resumed(evidence, tmp_path):
    choice = dict(ROWS="resnet20 aognet_full", SEEDS="3")
    started, _ = evidence("cifar", "out", 2, **choice)
    assert [re.search(r"--output (\S+)", line)[1] for line in started] == [
        "out/resnet20-seed3",
        "out/aognet_full-seed3",
    ]
    assert started[0].endswith("--model-kwargs edges=chain") and "--seed 3" in started[0]
    assert all("--resume" in line for line in started)  # which also begins
    assert evidence("cifar", "out", 2, **choice)[0] == []
    (tmp_path / "out/aognet_full-seed3/metrics.jsonl").write_text("{}\n")
    (again,), _ = evidence("cifar", "out", 2, **choice)
    assert "aognet_full" in again


def test_a_run_that_fails_is_named_and_the_others_go_on(evidence):
    started, done = evidence("cifar", "out", 1, ROWS="resnet20 er ws", SEEDS="0", FAILS="/er-")
    assert len(started) == 3 and done.returncode == 1
    assert done.stderr == "evidence.sh: these runs failed: er-seed0\n"


def test_wrong_arguments_of_evidence_are_one_sentence(evidence):
    for arguments, variables, message in (
        (("cifar", "out"), {"ROWS": "resnet56"}, "there is no row resnet56; allowed are resnet20"),
        (("cifar",), {}, "it takes DATA OUTPUT"),
        (("cifar10", "out"), {}, "there is no folder cifar10/train"),
    ):
        started, done = evidence(*arguments, **variables)
        assert not started and done.returncode == 2
        assert message in done.stderr and done.stderr.count("\n") == 1


# Pictures and tables


@pytest.fixture(scope="module")
def tool():
    return load_tool(ROOT / "tools/plot_runs.py")


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one row, the second shorter, and a row without dynamic edges."""
    content = {
        "dynamic-seed1": [(1, 40.0, 2.0), (2, 52.0, 1.5)],
        "dynamic-seed0": [(1, 42.0, 2.0), (2, 50.0, 1.5), (3, 54.0, 1.0)],
        "chain-seed0": [(1, 44.0, 1.9), (2, 60.0, 0.9)],
    }
    for name, epochs in content.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        dynamic = {"closed_edges": 0.25, "closed_blocks": 0.125} if "dynamic" in name else {}
        lines = [dict(epoch=e, loss=loss, top1=top1, **dynamic) for e, top1, loss in epochs]
        if not dynamic:
            lines = [line | {"seconds": 30.0 + line["epoch"]} for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    config = dict(model="dgnet_cifar_r20", num_classes=10, model_kwargs={"edges": "chain"})
    content = {"state_dict": {}, "training": {"config": config}}
    torch.save(content, tmp_path / "runs/chain-seed0/last.pth")
    return sorted((tmp_path / "runs").iterdir())


def call(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plot_runs.py", *map(str, arguments)])
    tool.main()


def test_the_table_has_seeds_and_means(tool, runs, monkeypatch, capsys):
    call(tool, monkeypatch, *runs, "--table")
    head, rule, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["chain", "269,722", "2", "60.00", "60.00", "0.9000", "–", "–", "32"],
        ["dynamic", "–", "2 to 3", "54.00, 52.00", "53.00", "1.2500", "25.0%", "12.5%", "–"],
    ]
    assert head.count("|") == rule.count("|") == 10


def test_a_metric_is_plotted_of_the_runs_that_have_it(tool, runs, monkeypatch, tmp_path):
    call(tool, monkeypatch, *runs, "--output", tmp_path / "c.png", "--metric", "closed_edges")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    (
        (None, ("--table",), "is not the folder of a run"),
        ("", ("--table",), "has no curves"),
        ('{"epoch": 1, "loss": 2}', ("--table",), "has no top1; the table is of classifiers"),
        ("{nothing", ("--table",), "cannot read"),
        ('{"epoch": 1, "loss": 2}', ("--output", "x.png", "--metric", "top9"), "'top9'; .*loss"),
    ),
)
def test_a_wrong_folder_is_one_sentence(
    text, arguments, message, tool, monkeypatch, tmp_path, capsys
):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, tmp_path, *arguments)
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and re.match(f"plot_runs.py: error: .*{message}", said[-1])
