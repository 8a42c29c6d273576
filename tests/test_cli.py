"""The command line: help without torch, names that were meant, configs of both frameworks."""

import argparse
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from gram_backbones import cli, exporting
from gram_backbones.cli import classifier, convert, d2, export, mmdet, robustness, setup
from gram_backbones.config_folders import find_config, list_configs
from gram_backbones.suggestions import did_you_mean
from tests.conftest import ROOT

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "benchmarking")
if find_spec("tabulate") is None:  # what some of them print takes it
    TOOLS = []


def test_every_help_comes_without_torch_within_a_second():
    """The time of all together, a second each: one alone would measure the machine's load."""
    code = (
        "import runpy, sys, contextlib, io\n"
        "def shown(call, *arguments):\n"
        "    sys.argv[1:] = arguments\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try: call()\n"
        "        except SystemExit as end: assert not end.code, end.code\n"
        "    assert 'usage: ' in out.getvalue(), arguments\n"
        "from gram_backbones import cli\n"
        "shown(cli.main, '--help')\n"
        "for name in cli.COMMANDS: shown(cli.main, name, '--help')\n"
        f"for name in {TOOLS}:\n"
        "    shown(lambda: runpy.run_path(f'tools/{name}.py', run_name='__main__'), '--help')\n"
        "heavy = {'torch', 'numpy', 'detectron2', 'mmengine', 'mmdet', 'timm'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.monotonic() - start < len(cli.COMMANDS) + len(TOOLS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (["trian"], "there is no command 'trian' (did you mean 'train'?); allowed are ['train', "),
        (["train", "mask_rcnn_aognet40_fpn_1x"], "did you mean 'mask_rcnn_aognet40m_fpn_1x'"),
        (["test", "atss_dgnet-r5_fpn_1x_coco"], "did you mean 'atss_dgnet-r50_fpn_1x_coco'"),
        (["train", "--num-gpus", "2"], "the first argument is '--num-gpus'; give the config first"),
        (["train", __file__.replace(".py", ".txt")], "there is no config"),
        (["cost", "aognet12m"], "there is no model named 'aognet12m' (did you mean 'aognet_12m'"),
        (["export", "dgnet_r5O", "x.onnx"], "did you mean 'dgnet_r50'"),
        (
            ["predict", "retinanet_aognet40m_fpn_1x", "w.pth", "gone"],
            "there is no image, video or folder 'gone'",
        ),
        (["export", "dgnet_r18", "x.onnx", "--norm", "LN"], "invalid choice: 'LN'"),
        (["export", "dgnet_r18", "x.onnx", "--output-stride", "4"], "invalid choice: 4"),
        (["export", "aognet_12m_released", "x.onnx", "--weights", "autors"], "mean 'authors'?"),
    ),
)
def test_wrong_command_lines_end_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code
    assert sentence in f"{ended.value.code} {capsys.readouterr().err}"


def test_the_config_says_which_framework_runs(monkeypatch):
    called = []
    monkeypatch.setattr(d2, "main", lambda argv, prog: called.append(("d2", *argv)))
    monkeypatch.setattr(mmdet, "train", lambda argv, prog: called.append(("mmdet train", *argv)))
    monkeypatch.setattr(mmdet, "test", lambda argv, prog: called.append(("mmdet test", *argv)))
    name, other = "mask_rcnn_aognet40m_fpn_1x", "retinanet_aognet-40m_fpn_1x_coco"
    file = str(list_configs()[other])
    cli.main(["train", name, "--num-gpus", "2", "SOLVER.MAX_ITER", "3"])
    cli.main(["train", "--resume", "--config", name])
    cli.main(["train", other, "--data-root", "coco"])
    cli.main(["test", name, "w.pth", "OUTPUT_DIR", "out"])
    cli.main(["test", name, "--resume"])
    cli.main(["test", name, "MODEL.WEIGHTS", "w.pth"])
    cli.main(["test", file, "w.pth"])
    assert called == [
        ("d2", "--config", name, "--num-gpus", "2", "SOLVER.MAX_ITER", "3"),
        ("d2", "--config", name, "--resume"),
        ("mmdet train", other, "--data-root", "coco"),
        ("d2", "--config", name, "--eval-only", "OUTPUT_DIR", "out", "MODEL.WEIGHTS", "w.pth"),
        ("d2", "--config", name, "--eval-only", "--resume"),
        ("d2", "--config", name, "--eval-only", "MODEL.WEIGHTS", "w.pth"),
        ("mmdet test", file, "w.pth"),
    ]


def test_configs_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = list_configs(["d2"])
    assert known.keys() == {path.stem for path in (ROOT / "d2_configs").glob("*.yaml")}
    assert find_config("mask_rcnn_aognet12m_fpn_1x.yaml") == known["mask_rcnn_aognet12m_fpn_1x"]
    (tmp_path / "mask_rcnn_aognet12m_fpn_1x.yaml").touch()  # one's own comes first
    assert find_config("mask_rcnn_aognet12m_fpn_1x.yaml").absolute().parent == tmp_path
    with pytest.raises(ValueError, match="there is no config 'gone/mask_rcnn_aognet12m_fpn_1x'"):
        find_config("gone/mask_rcnn_aognet12m_fpn_1x")
    with pytest.raises(ValueError, match="there is no config"):
        find_config("retinanet_aognet-40m_fpn_1x_coco", ["d2"])


def test_only_close_names_are_suggested():
    assert did_you_mean("ResNet5", ["resnet50", "vgg"]) == " (did you mean 'resnet50'?)"
    assert did_you_mean("swin", ["resnet50", "vgg"]) == did_you_mean("x", []) == ""


def test_choices_in_the_parsers_are_those_of_the_package():
    from gram_backbones.layers import NORMS
    from gram_backbones.weights import convert as weights
    from gram_backbones.weights import published

    assert (convert.LAYOUTS, convert.NAMINGS) == (weights.LAYOUTS, weights.NAMINGS)
    pytest.importorskip("timm", reason="timm is not installed")
    from gram_backbones.classification import building, data

    assert {*export.NORMS} == {*NORMS} and setup.ACCEPT == published.ACCEPT
    assert classifier.AMP_DTYPES == tuple(building.AMP_DTYPES)
    assert classifier.DATASETS == data.DATASETS


def test_wherever_weights_are_named_their_licence_can_be_accepted(monkeypatch):
    rest = {
        d2.make_parser: [],
        mmdet.train_parser: ["c.py"],
        mmdet.test_parser: ["c.py", "w.pth"],
        export.make_parser: ["aognet_4m", "x.onnx"],
        convert.make_parser: ["w.pth", "x.pth", "--model", "aognet_4m"],
        robustness.make_parser: ["aognet_4m", "images", "--checkpoint", "w.pth"],
    }
    calls = {make(): arguments for make, arguments in rest.items()}
    monkeypatch.setenv(setup.ACCEPT, "")  # so that it is restored at the end
    parser = argparse.ArgumentParser()
    classifier.add_inputs(parser)
    calls[parser] = ["--model", "aognet_4m", "--data", "cifar"]
    for number, (parser, arguments) in enumerate(calls.items()):
        monkeypatch.delenv(setup.ACCEPT, raising=False)
        parser.parse_args(arguments)
        assert setup.ACCEPT not in os.environ
        parser.parse_args(["--accept-license", f"licence {number}", *arguments])
        assert os.environ[setup.ACCEPT] == f"licence {number}"


def test_export_s_network_has_the_stride_and_norm_of_the_command_line(
    monkeypatch, capsys, tmp_path
):
    networks = []
    monkeypatch.setattr(exporting, "export_network", lambda net, *a, **k: networks.append(net) or 0)
    arguments = ["--output-stride", "16", "--norm", "GN"]
    cli.main(["export", "dgnet_r18", str(tmp_path / "x.onnx"), *arguments])
    assert networks[0].feature_strides["res5"] == 16
    assert isinstance(networks[0].bn1, torch.nn.GroupNorm)


def test_the_benchmark_draws_every_comparison(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.syspath_prepend(ROOT / "tools")
    import benchmarking

    points = [{"series": "side", "x": x, "ms": x, "operators": 9, "step MB": x} for x in (1, 2, 4)]
    points.append({"series": "side", "x": "exponent", "ms": 1.0, "operators": 0.0, "step MB": 1.0})
    words = [{**point, "series": "words"} for point in points]
    ratio = {"ratio": 0.9, "from": 0.8, "to": 1.0, "bound": 1.1, "FLOPs removed": 0.1}
    for rows, size in (
        ([{"model": "aognet_4m", "mode": "plain", "ms": 3.0}], (960, 168)),
        ([ratio, {**ratio, "FLOPs removed": 0.3}], (720, 480)),
        ([*points, *words], (960, 480)),
    ):
        benchmarking.draw(rows, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            assert picture.size == size and len(picture.getcolors(10**6)) > 20


def test_cost_counts_the_models_that_are_named(capsys):
    cli.main(["cost", "dgnet_cifar_r20"])
    assert "| `dgnet_cifar_r20` | 270,884 | 0.041 |" in capsys.readouterr().out


def test_the_program_s_name_is_in_its_examples():
    assert "\nme x" in setup.parser_with_examples("Do.\n\n{prog} x", "me").format_help()
