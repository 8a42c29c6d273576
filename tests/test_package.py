"""What ``import gram_backbones`` gives, to Python and to type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gram_backbones

ROOT = Path(__file__).resolve().parents[1]


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
