"""Fixtures of classifiers' tests; without timm, what needs it is not imported."""

import pytest

from gram_backbones import AOGNet
from gram_backbones.aognet import AOGNetVariant
from gram_backbones.preprocessing import CIFAR_RGB

TINY = AOGNetVariant(
    (2, 2, 2),
    (1, 1, 1),
    (8, 16, 24, 32),
    ("keep_first", "keep_last", "keep_first"),
    stem="cifar",
    preprocessing=CIFAR_RGB,
)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """A network of CIFAR's kind that learns in seconds, as ``aognet_tiny``."""
    monkeypatch.setitem(AOGNet.VARIANTS, "aognet_tiny", TINY)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    from tests.classification.tiny import make_folder

    return make_folder(tmp_path_factory.mktemp("few"), 4, 3)


@pytest.fixture(scope="module")
def tool():
    from tests.classification.tiny import TOOL, load_tool

    return load_tool(TOOL)
