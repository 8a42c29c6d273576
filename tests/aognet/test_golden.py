"""The released AOGNet-12M against the numerical record of the authors' implementation."""

import numpy as np
import pytest
import torch

from gram_backbones import create_model, load_weights
from gram_backbones.aognet.names import authors
from gram_backbones.weights.files import WeightFile
from tests.aognet.golden import fixed_value
from tests.conftest import load_reference

# Relative, of every figure.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def record():
    return load_reference("released_12m.json")


@pytest.fixture(scope="module")
def model(record):
    model = create_model("aognet_12m_released").double().eval()
    state = {name: fixed_value(name, shape) for name, shape in record["state_dict"].items()}
    found = load_weights(model, WeightFile("record", state))
    assert len(found.values) == 1927 and not found.ignored
    return model


def test_every_tensor_of_the_checkpoint_has_a_place_of_its_shape(record, model):
    shapes = {authors(name): list(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 1927
    assert shapes == record["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]


def test_outputs_of_every_stage_and_logits(record, model):
    outputs = {}
    for name in ("stem", "res2", "res3", "res4", "res5"):
        key = "stem" if name == "stem" else f"stage{int(name[3]) - 2}"
        module = getattr(model, name)
        module.register_forward_hook(lambda _m, _i, out, key=key: outputs.__setitem__(key, out))
    image = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 64, 64)))
    with torch.no_grad():
        outputs["logits"] = model(image)
    assert set(outputs) == set(record["outputs"])
    for key, wanted in record["outputs"].items():
        out = outputs[key]
        assert list(out.shape) == wanted["shape"]
        flat = out.flatten()
        samples = flat[torch.linspace(0, flat.numel() - 1, 64).long()].tolist()
        for got, want in zip(samples, wanted["samples"], strict=True):
            assert got == want == 0 or got == pytest.approx(want, rel=TOLERANCE), key
        assert flat.mean().item() == pytest.approx(wanted["mean"], rel=TOLERANCE)
        assert flat.std().item() == pytest.approx(wanted["std"], rel=TOLERANCE)
