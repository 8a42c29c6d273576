"""What ``import gram_backbones`` gives, and the wheel and its command line without frameworks."""

import ast
import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gram_backbones
from gram_backbones import AOGNet, DGNet, create_model
from gram_backbones.dgnet import DGStage
from tests.conftest import ROOT, check_ended_well

FRAMEWORKS = ("detectron2", "mmdet", "mmengine", "mmcv", "timm", "cv2")
# Blocked are imports of the frameworks; none of what only they need may be imported either.
PREAMBLE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({FRAMEWORKS}))
def run(*arguments):
    sys.argv[1:] = arguments
    runpy.run_module("gram_backbones", run_name="__main__")
def check():
    names = {(*FRAMEWORKS, "networkx", "fvcore")}
    assert not [name for name in names if sys.modules.get(name)]
"""


def run_without_frameworks(code, installed, folder):
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PREAMBLE + code]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    check_ended_well(done)
    return done.stdout


def test_stub_all_and_dir_name_the_same():
    stub = ast.parse((ROOT / "gram_backbones/__init__.pyi").read_text())
    imported = [
        alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    lists = [ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)]
    assert lists == [sorted(imported)] == [gram_backbones.__all__] == [dir(gram_backbones)]
    for name in imported:
        assert getattr(gram_backbones, name).__name__ == name


def test_an_unknown_name_is_no_attribute():
    assert not hasattr(gram_backbones, "AOGNet50")


@pytest.mark.slow
def test_neither_package_nor_command_line_loads_torch():
    code = (
        "import sys, gram_backbones; gram_backbones.build_graph(4); gram_backbones.__version__;"
        "sys.argv[1:] = ['configs', 'd2']; import runpy;"
        "runpy.run_module('gram_backbones', run_name='__main__');"
        "assert 'torch' not in sys.modules;"
        "gram_backbones.list_models;"  # the registry holds the networks' classes
        "assert 'torch' in sys.modules and not {'detectron2', 'mmdet', 'timm'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_wheel_ships_all_configs_and_says_where(installed, tmp_path):
    code = "run('configs'); run('configs', 'mmdet'); check(); assert 'torch' not in sys.modules"
    d2, mmdet, again = map(Path, run_without_frameworks(code, installed, tmp_path).split())
    assert (d2.name, mmdet.name, again) == ("d2_configs", "mmdet_configs", mmdet)
    for folder in (d2, mmdet):
        assert folder.is_relative_to(installed)
        files = {p.relative_to(folder) for p in folder.rglob("*.*") if p.suffix in (".py", ".yaml")}
        here = ROOT / folder.name
        assert files == {p.relative_to(here) for p in here.rglob("*.*") if p.is_file()}


def test_the_wheel_installs_the_command_line(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, installed / "bin/gram-backbones", "configs", "--names", "d2"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    check_ended_well(done)
    assert "mask_rcnn_aognet40m_fpn_1x" in done.stdout.splitlines()
    assert (installed / "gram_backbones/report/template.html").is_file()


@pytest.mark.slow
def test_the_wheel_builds_and_fills_models_without_a_framework(installed, tmp_path):
    code = """
import torch, gram_backbones as g
print(g.__file__)
for name in ("aognet_4m", "dgnet_r18"):
    assert name in g.list_models()
    source = g.create_model(name, num_classes=3)
    torch.save(source.state_dict(), "saved.pth")
    model = g.create_model(name, features_only=True)
    found = g.load_weights(model, "saved.pth")
    assert len(found.values) == len(model.state_dict()) and len(found.ignored) == 2
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in model.state_dict().items())
    assert model(torch.zeros(1, 3, 64, 64))["res5"].shape[2:] == (2, 2)
check()
"""
    assert Path(run_without_frameworks(code, installed, tmp_path).strip()).is_relative_to(installed)


@pytest.mark.slow
def test_list_weights_prints_a_table_without_a_framework(installed, tmp_path):
    told = run_without_frameworks("run('list-weights'); check()", installed, tmp_path)
    head, *rows = told.splitlines()
    assert head.split() == ["model", "tag", "top-1", "licence", "size", "from", "here"]
    assert len(rows) == len(gram_backbones.list_weights())
    row = next(row for row in rows if row.startswith("aognet_12m_released  authors_mixup"))
    assert "78.37" in row and "research only" in row and "47 MB" in row


@pytest.mark.slow
def test_env_prints_versions_without_a_framework(installed, tmp_path):
    told = run_without_frameworks("run('env'); check()", installed, tmp_path)
    assert told.startswith(f"gram_backbones {gram_backbones.__version__}\n")
    assert torch.__version__ in told and platform.python_version() in told


@pytest.mark.slow
def test_env_prints_versions_with_what_is_installed():
    command = [sys.executable, "-W", "ignore", "-m", "gram_backbones", "env"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    check_ended_well(done)
    told = done.stdout
    assert told.startswith(f"gram_backbones {gram_backbones.__version__}\n")
    assert torch.__version__ in told and platform.python_version() in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "wanted"),
    [
        ("reveal_type(g.AOGNet())", 'Revealed type is "gram_backbones.aognet.network.AOGNet"'),
        ("g.AOGNet(variant=3)", 'Argument "variant" to "AOGNet" has incompatible type "int"'),
        ("g.AOGNet50", 'Module has no attribute "AOGNet50"'),
    ],
)
def test_mypy_sees_the_classes(tmp_path, use, wanted):
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "use.py"
    file.write_text(f"import gram_backbones as g\n{use}\n")
    out, errors, _ = api.run(["--config-file", str(ROOT / "pyproject.toml"), str(file)])
    assert not errors and wanted in out


@pytest.mark.parametrize(
    ("build", "sentence"),
    (
        (lambda: create_model("aognet_4m", out_feature=()), "aognet_4m .* mean 'out_features'"),
        (lambda: create_model("dgnet_r18", feature_only=True), "dgnet_r18 .* mean 'features_only'"),
        (lambda: create_model("dgnet_r18", weight="x.pth"), "dgnet_r18 .* mean 'weights'"),
        (lambda: AOGNet("aognet_4m", with_cps=True), "AOGNet has no argument .* mean 'with_cp'"),
        (lambda: DGNet("dgnet_r18", edge="static"), "DGNet has no argument .* mean 'edges'"),
        (lambda: DGStage("dgnet_r18", edge="static"), "no argument 'edge' .did you mean 'edges'"),
        (lambda: create_model("aognet_12m_released", weights="autors"), "mean 'authors'"),
    ),
)
def test_misspelt_arguments_are_told_what_they_may_mean(build, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        build()


def test_a_subclass_has_its_own_arguments_too():
    class Mine(AOGNet):
        def __init__(self, *args, mine=0, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

    model = Mine("aognet_4m", mine=3, out_features=("res2",))
    assert copy.deepcopy(model).mine == 3 and Mine.argument_names() > AOGNet.argument_names()
    with pytest.raises(ValueError, match="Mine has no argument 'mines' .did you mean 'mine'"):
        Mine("aognet_4m", mines=3)
