"""Features in half precision stay near those of float32."""

import pytest
import torch

from gram_backbones import create_model, list_models
from tests.test_fused import filled


def features(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.grid
@pytest.mark.parametrize("kind", ("autocast", "weights", "deployed weights"))
@pytest.mark.parametrize("norm", ("BN", "FrozenBN"))
@pytest.mark.parametrize("name", list_models())
def test_features_are_near_those_of_float32(name, norm, kind):
    if norm == "BN" and kind != "autocast":
        pytest.skip("in evaluation it is what FrozenBN is")
    model = filled(create_model(name, features_only=True, norm=norm)).eval()
    x = torch.randn(2, 3, 64, 64)
    wanted = features(model, x)
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = features(model, x)
    else:
        model = model.deploy() if "deployed" in kind else model
        got = features(model.bfloat16(), x.bfloat16())
    for name, feature in got.items():
        error = (feature.float() - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.02, (name, float(error))  # not true of nan
