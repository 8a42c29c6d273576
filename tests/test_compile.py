"""Both families compile as one graph, once more for the first new image size, then no more.

Images have 160 pixels or more: below that, torch chooses kernels by the number of elements, and
compiles again where an image crosses its limit.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gram_backbones import create_model
from tests.test_fused import filled

SIZES = ((320, 352), (384, 320), (352, 416))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trains", "norm"),
    (
        ("dgnet_cifar_r20", False, "FrozenBN"),
        ("dgnet_cifar_r20", True, "BN"),
        ("dgnet_regnety_600m", False, "FrozenBN"),
        ("aognet_cifar_s_pruned_lateral", True, "BN"),
    ),
)
def test_new_image_sizes_compile_once(name, trains, norm):
    torch._dynamo.reset()
    counter = CompileCounter()
    model = filled(create_model(name, features_only=True, norm=norm)).train(trains)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(trains):
        for size in SIZES:
            compiled(torch.randn(2, 3, *size))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_a_deployed_network_compiles_once():
    torch._dynamo.reset()
    counter = CompileCounter()
    model = filled(create_model("aognet_cifar_s_pruned", features_only=True)).deploy()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            compiled(torch.randn(1, 3, *size))
    assert counter.frame_count == 2
