"""The command line that trains classifiers, in this process and as a process."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")

from gram_backbones import AOGNet
from gram_backbones.classification.building import RunConfig
from gram_backbones.classification.checkpoint import read_checkpoint
from gram_backbones.classification.data import open_datasets
from gram_backbones.classification.engine import Evaluation
from gram_backbones.classification.recipes import find_recipe
from gram_backbones.preprocessing import IMAGENET_RGB
from gram_backbones.weights.files import write_weight_file
from gram_backbones.weights.loading import load_weights
from tests.classification.tiny import CPU, TOOL, call, make_folder, refused
from tests.conftest import ROOT, check_ended_well


def test_refused_command_lines(tool, monkeypatch, few, tmp_path):
    out = ("--output", tmp_path / "out", "--workers", 0)
    data = ("--data", few, *out)
    said = refused(tool, monkeypatch, "--model", "resnet50", *data)
    assert "no model named 'resnet50'" in said and "aognet_12m" in said
    said = refused(tool, monkeypatch, "--model", "aognet_4m", "--recipe", "fast", *data)
    assert "no recipe named 'fast'" in said and "aognet_imagenet" in said
    said = refused(tool, monkeypatch, "--model", "aognet_4m", *data)
    assert "16 training images do not fill one batch of 1024" in said
    said = refused(tool, monkeypatch, "--model", "aognet_4m", "--epochs", 0, *data)
    assert "epochs is 0" in said
    nowhere = tmp_path / "nowhere"
    said = refused(tool, monkeypatch, "--model", "aognet_4m", "--data", nowhere, *out)
    assert f"there is no folder {nowhere / 'train'}" in said
    cifar = ("--model", "aognet_cifar_full", "--dataset", "cifar10", "--data", nowhere)
    assert "cifar-10-batches-py" in refused(tool, monkeypatch, *cifar, *out)
    said = refused(tool, monkeypatch, "--model", "aognet_tiny", "--eval-only", *data)
    assert f"there is no weight file {tmp_path / 'out/last.pth'}" in said
    assert not (tmp_path / "out").exists() and not nowhere.exists()


def test_folders_that_are_not_whole_are_refused(tool, monkeypatch, few, tmp_path):
    root = shutil.copytree(few, tmp_path / "data")
    arguments = ("--model", "aognet_tiny", "--data", root, "--output", tmp_path / "out")
    (root / "val/extra").mkdir()
    said = refused(tool, monkeypatch, *arguments)
    assert f"{root / 'val'}" in said and "extra" in said  # a class without images
    shutil.copy(root / "val/box/0.png", root / "val/extra")
    assert "only one of them has extra" in refused(tool, monkeypatch, *arguments)
    shutil.rmtree(root / "val")
    assert f"there is no folder {root / 'val'}" in refused(tool, monkeypatch, *arguments)


@pytest.mark.slow
def test_the_tool_runs_by_its_defaults_and_resumes(tool, monkeypatch, few, tmp_path, capsys):
    """The recipe's 300 epochs apart: overrides reach the run, and a second call goes on."""
    arguments = ("--model", "aognet_tiny", "--recipe", "aognet_cifar", "--data", few)
    arguments += ("--batch-size", 8, "--img-size", 16, "--workers", 0, "--seed", 3, "--no-ema")
    arguments += ("--output", tmp_path / "out", "--epochs", 2, "--amp", "bf16")
    call(tool, monkeypatch, *arguments)
    content = read_checkpoint(tmp_path / "out/last.pth")
    config = content["training"]["config"]
    wanted = dict(epochs=2, batch_size=8, image_size=16, seed=3, amp="bf16", ema_decay=None)
    assert {key: config[key] for key in wanted} == wanted
    assert config["lr"] == pytest.approx(0.1 * 8 / 128)
    assert content["training"]["ema"] is None
    assert "already contains a run" in refused(tool, monkeypatch, *arguments)
    call(tool, monkeypatch, *arguments, "--resume")
    capsys.readouterr()
    call(tool, monkeypatch, *arguments, "--eval-only")
    said = capsys.readouterr().out
    assert f"top-1 {content['meta']['top1']}, top-5 100.00" in said
    file = tmp_path / "converted.safetensors"  # any weight file is evaluated
    write_weight_file(file, content["state_dict"], {}, "state_dict")
    call(tool, monkeypatch, *arguments, "--eval-only", "--resume", file)
    assert capsys.readouterr().out == said
    content["state_dict"]["fc.bias"][0] = float("nan")
    write_weight_file(file, content["state_dict"], {}, "state_dict")
    said = refused(tool, monkeypatch, *arguments, "--eval-only", "--resume", file)
    assert "not finite: fc.bias" in said


@pytest.fixture(scope="module")
def fewest(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("fewest"), 2, 1)


def run_tool(*arguments, launcher=()):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *map(str, launcher), str(TOOL), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_an_imagenet_backbone_s_last_checkpoint_fills_a_detector_s(fewest, tmp_path):
    done = run_tool(
        *("--model", "aognet_4m", "--data", fewest, "--img-size", 64, "--epochs", 1),
        *("--batch-size", 4, "--workers", 0, "--output", tmp_path),
    )
    check_ended_well(done)
    assert "epoch 1/1: loss" in done.stdout
    state = read_checkpoint(tmp_path / "last.pth")["state_dict"]
    backbone = AOGNet("aognet_4m")
    load_weights(backbone, tmp_path / "last.pth")
    own = backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    assert state.keys() - own.keys() == {"fc.weight", "fc.bias"}


@pytest.mark.slow
def test_two_processes_share_the_work(few, tmp_path, check_gloo_ended):
    arguments = ("--model", "dgnet_r18", "--data", few, "--img-size", 32, "--batch-size", 8)
    arguments += ("--workers", 0, "--output", tmp_path)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    done = run_tool(*arguments, "--epochs", 2, launcher=torchrun)
    check_ended_well(done)
    check_gloo_ended()
    content = read_checkpoint(tmp_path / "last.pth")
    assert content["training"]["updates"] == 4  # 2 epochs, 16 images, 2 × 4 at a time
    assert done.stdout.count("epoch 2/2") == 1  # one of them writes
    # One process finds what two found together: no image was counted twice, statistics are shared.
    recipe = find_recipe("dgnet_r18", "folder").with_changes(image_size=32)
    val = open_datasets(few, "folder", recipe, IMAGENET_RGB)[1]
    config = RunConfig("dgnet_r18", "folder", recipe, 4, 5)
    found = Evaluation(config, val, tmp_path / "last.pth", CPU).run()
    line = content["training"]["history"][-1]
    prefix = "ema_" if content["meta"]["weights"] == "moving average" else ""
    for key, value in found.items():
        assert line[prefix + key] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
def test_the_exit_code_of_a_refusal_is_one():
    done = run_tool("--model", "aognet_5m", "--data", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("train_classifier.py: there is no model named 'aognet_5m'")
    assert done.stderr.count("\n") == 1
