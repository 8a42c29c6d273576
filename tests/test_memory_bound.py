"""Memory-bound operations and the memory that dynamic stages share."""

import pytest
import torch
from torch import nn
from torchvision.models.regnet import ResBottleneckBlock

from gram_backbones.dynamic_graph import DynamicGraph
from gram_backbones.memory_bound import weighted_sum

from .test_dynamic_graph import BLOCKS, C, basic_blocks, settle, spread


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("images", (None, [2, 0]))
def test_weighted_sum(layout, images):
    torch.manual_seed(0)
    features = [torch.randn(3, 5, 300, 300) for _ in range(4)]  # more than one piece
    if layout == "channels_last":
        features = [f.to(memory_format=torch.channels_last) for f in features]
    chosen = images or [0, 1, 2]
    weights = torch.rand(len(chosen), 4)
    weights[0, 1] = weights[1, 0] = 0
    weights[1] = 0
    index = None if images is None else torch.tensor(images)
    wanted = sum(f[chosen] * w[:, None, None, None] for f, w in zip(features, weights.unbind(1)))
    torch.testing.assert_close(weighted_sum(features, weights, index), wanted)
    torch.testing.assert_close(weighted_sum(features, weights.tolist(), index), wanted)
    scratch = torch.full((3, 5, 300, 300), float("nan"))
    out = weighted_sum(features, weights.tolist(), index, scratch)
    torch.testing.assert_close(out, wanted)
    if layout == "contiguous":
        assert out.data_ptr() == scratch.data_ptr()


class PassOn(nn.Module):
    """A block of an unknown type that returns its very input."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("places", ((1, 2), (0,), (0, 3), (3,)))
def test_memory_is_not_shared_with_what_is_still_needed(places):
    torch.manual_seed(0)
    blocks = basic_blocks(4, first_shape_changes=False)
    for k in places:
        blocks[k] = PassOn()
    settle(blocks).eval()
    graph = spread(DynamicGraph(4, C)).eval()
    x = torch.randn(2, C, 6, 6, dtype=torch.double)
    with torch.no_grad():
        nn.init.constant_(graph.thresholds, -1)
        fast = graph(x, blocks)
    torch.testing.assert_close(fast, graph(x, blocks).detach())


@pytest.mark.parametrize("kind", ("basic", "identity", "inverted"))
def test_results_keep_their_values_in_later_passes(kind):
    torch.manual_seed(0)
    blocks = settle(BLOCKS[kind]()).eval()
    projection = nn.Conv2d(4, C, 1, 2).double() if kind == "inverted" else None
    graph = DynamicGraph(len(blocks), C, projection=projection).double().eval()
    inputs = torch.randn(3, 2, C if kind == "identity" else 4, 8, 8, dtype=torch.double)
    with torch.inference_mode():
        first = graph(inputs[0], blocks)
        kept = first.clone()
    with torch.no_grad():
        others = [graph(x, blocks) for x in inputs]
    assert torch.equal(first, kept) and torch.equal(others[0], kept)
    torch.testing.assert_close(others[2], graph(inputs[2], blocks).detach())


def test_numbers_keep_double_precision_in_every_layout():
    """They once went through float32 where maps were not contiguous or blocks not fused."""
    torch.manual_seed(0)
    features = [torch.randn(2, 3, 4, 5, dtype=torch.double) for _ in range(2)]
    weights = torch.rand(2, 2, dtype=torch.double)
    wanted = weighted_sum(features, weights)
    features = [f.to(memory_format=torch.channels_last) for f in features]
    got = weighted_sum(features, weights.tolist())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)

    blocks = nn.ModuleList(
        ResBottleneckBlock(a, C, s, nn.BatchNorm2d, nn.SiLU, 4) for a, s in ((4, 2), (C, 1))
    )
    settle(blocks).eval()
    graph = DynamicGraph(2, C).double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.double)
    with torch.no_grad():
        fast = graph(x, blocks)
    torch.testing.assert_close(fast, graph(x, blocks).detach(), rtol=1e-12, atol=1e-12)
