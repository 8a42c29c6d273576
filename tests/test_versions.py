"""Versions that are too old are named at import."""

import importlib
import subprocess
import sys

import pytest

import gram_backbones
from gram_backbones.versions import OLDEST, check_version
from tests.conftest import ROOT


@pytest.mark.parametrize("installed", ("2.6.0+cpu", "2.6.0a0+git3a2b", "2.14.1", "3.0", "unknown"))
def test_a_version_that_is_new_enough_passes(installed):
    check_version("torch", installed)


@pytest.mark.parametrize(
    ("package", "installed"), (("torch", "2.5.1+cu124"), ("torch", "1.13"), ("timm", "1.0.9"))
)
def test_an_older_version_is_named_with_what_is_allowed(package, installed):
    with pytest.raises(ImportError) as raised:
        check_version(package, installed)
    wanted = f"needs {package} {OLDEST[package]} or newer; installed is {package} {installed}"
    assert str(raised.value) == f"gram_backbones {wanted}"


def test_installers_are_asked_for_the_same_versions():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={OLDEST["torch"]}"' in project
    assert project.count("timm>=") == project.count(f'"timm>={OLDEST["timm"]}"') > 0


def test_an_old_torch_is_refused_before_it_is_imported(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "torch/version.py").write_text("__version__ = '2.5.1+cpu'\ngit_version = '1'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gram_backbones"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    wanted = "gram_backbones needs torch 2.6 or newer; installed is torch 2.5.1+cpu"
    assert done.stderr.splitlines()[-1] == f"ImportError: {wanted}"


def test_a_torch_that_was_imported_before_is_checked_too(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.5.1")
    with pytest.raises(ImportError, match="torch 2.6 or newer; installed is torch 2.5.1"):
        importlib.reload(gram_backbones)


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(ImportError, match="needs Python 3.10 or newer; this is Python 3.9"):
        importlib.reload(gram_backbones)


@pytest.mark.parametrize(
    ("package", "old"), (("detectron2", "0.5"), ("mmdet", "2.28.2"), ("timm", "1.0.14"))
)
def test_an_adapter_refuses_an_old_framework(monkeypatch, package, old):
    adapter = f"gram_backbones.{'d2' if package == 'detectron2' else package}"
    monkeypatch.setattr(pytest.importorskip(package), "__version__", old)
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    with pytest.raises(ImportError, match=f"needs {package} .* installed is {package} {old}"):
        importlib.import_module(adapter)
