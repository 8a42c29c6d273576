"""Both families compile as one graph, once more for the first new image size, then no more."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gram_backbones import create_model
from tests.test_fused import filled

QUICK = ("aognet_cifar_s_pruned_lateral", "dgnet_cifar_r20")
NAMES = (*QUICK, "aognet_4m", "dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnety_600m")


@pytest.mark.parametrize("norm", ("BN", "FrozenBN"))
@pytest.mark.parametrize("trains", (False, True))
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_new_image_sizes_compile_once(name, trains, norm):
    torch._dynamo.reset()
    counter = CompileCounter()
    model = filled(create_model(name, features_only=True, norm=norm)).train(trains)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(trains):
        for height, width in ((64, 96), (128, 64), (96, 160), (192, 128)):
            images = torch.randn(2, 3, height, width)
            features, wanted = compiled(images), model(images)
            for key, feature in features.items():
                torch.testing.assert_close(feature, wanted[key], rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", QUICK)
def test_a_deployed_network_compiles_once(name):
    torch._dynamo.reset()
    counter = CompileCounter()
    model = filled(create_model(name, features_only=True)).deploy()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for side in (64, 96, 128):
            compiled(torch.randn(1, 3, side, side + 32))
    assert counter.frame_count <= 2
