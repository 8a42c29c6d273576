"""Channels and strides of every model: what a row says, what is built, what the docs say."""

import pytest
import torch

from gram_backbones import create_model, feature_info, list_models
from gram_backbones.analysis.cost_table import feature_table
from tests.conftest import ROOT


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
def test_the_info_is_what_is_built(name):
    images = torch.zeros(1, 3, 64, 64, device="meta")
    with torch.device("meta"):
        stages = list(feature_info(name))
        model = create_model(name, features_only=True, out_features=stages).eval()
        maps = {feature: x.shape for feature, x in model(images).items()}
    wanted = feature_info(name)
    assert maps == {f: (1, i.channels, 64 // i.stride, 64 // i.stride) for f, i in wanted.items()}


def test_an_aognet_s_info_builds_nothing(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    assert list(feature_info("aognet_40m_released")["res4"]) == [896, 16]


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="no model named 'aognet_13m'"):
        feature_info("aognet_13m")


def test_the_table_in_the_docs_is_the_tool_s():
    table = feature_table()
    assert table in (ROOT / "docs/models.md").read_text(), "tools/model_table.py --features"
    tops = [line for line in table.splitlines() if line.startswith("| `aognet")][:2]
    assert all("_released`" in line and "`authors_mixup`" in line for line in tops)
