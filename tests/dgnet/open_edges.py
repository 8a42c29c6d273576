"""Small DG-Nets whose images open different edges: what baked-in edges would get wrong."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from gram_backbones import DGNet, record_connectivity
from gram_backbones.dgnet.graph import DynamicGraph
from gram_backbones.dgnet.variants import MOBILENET_V2, REGNET, RESNET, DGNetVariant

_REGNET = BlockParams([2, 3, 1, 1], [16, 24, 32, 40], [8, 8, 8, 8], [1.0] * 4, [2] * 4, 0.25)
# One small network for each type of block, with 2 or 3 blocks in most stages.
SMALL = {
    "basic": DGNetVariant(partial(ResNet, BasicBlock, [2, 3, 1, 1]), RESNET),
    "bottleneck": DGNetVariant(partial(ResNet, Bottleneck, [2, 3, 1, 1]), RESNET),
    "regnet": DGNetVariant(partial(RegNet, _REGNET), REGNET),
    "inverted": DGNetVariant(partial(mobilenet_v2, width_mult=0.25), MOBILENET_V2),
}


def settle(model: nn.Module) -> nn.Module:
    """``model`` with BN scales and statistics as after some training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def spread(model: nn.Module, std: float = 1.0) -> nn.Module:
    """``model`` with routers whose α differ between images and lie on both sides of τ = 0.5."""
    for graph in model.modules():
        if isinstance(graph, DynamicGraph) and graph.edges == "dynamic":
            nn.init.constant_(graph.thresholds, 0.5)
            for router in graph.routers:
                nn.init.normal_(router.weight, std=std * (64 / router.in_features) ** 0.5)
                nn.init.normal_(router.bias, mean=1.0, std=0.5)
    return model


def coloured_images(n: int = 4, size: int | tuple[int, int] = 64) -> list[Tensor]:
    """``n`` images ``(1, 3, size, size)`` of noise, each of another colour and contrast."""
    size = (size, size) if isinstance(size, int) else size
    noise = torch.randn(n, 3, *size) + 1.5 * torch.randn(n, 3, 1, 1)
    return list((noise * torch.logspace(-0.5, 0.5, n).view(n, 1, 1, 1)).split(1))


def open_edges(model: nn.Module, *inputs) -> tuple[bool, ...]:
    """Which edges of all stages are open in one forward pass, without gradients."""
    with torch.no_grad(), record_connectivity(model) as records:
        model(*inputs)
    return tuple(e for matrices in records.values() for e in matrices[0].ne(0).flatten().tolist())


def small_network(kind: str = "basic", size: int = 64, **options) -> tuple[DGNet, list[Tensor]]:
    """A network in eval mode and four images ``(1, 3, size, size)``, each with edges of its own.

    Some image does without some block. The first image is the one to trace or export with.
    ``kind`` is a row of ``SMALL``, or a variant of DG-Net. The network returns ``(res2, res3)``
    unless ``options``, those of :class:`DGNet`, ask for something else.
    """
    if "num_classes" not in options:
        options.setdefault("out_indices", (1, 2))
    torch.manual_seed(0)
    model = settle(DGNet(SMALL.get(kind, kind), **options)).eval()
    for seed in range(100):
        torch.manual_seed(seed)
        spread(model)
        images = coloured_images(size=size)
        if model.variant.edges != "dynamic":
            return model, images
        if edges_differ(model, images) and leaves_out_blocks(model, images):
            return model, images
    raise AssertionError("no seed gives four images with edges of their own")


def edges_differ(model: nn.Module, inputs: list) -> bool:
    """Whether every input opens another set of edges."""
    return len({open_edges(model, item) for item in inputs}) == len(inputs)


def leaves_out_blocks(model: nn.Module, inputs: list) -> bool:
    """Whether all edges into some block are closed for some input."""
    with torch.no_grad(), record_connectivity(model) as records:
        for item in inputs:
            model(item)
    matrices = [matrix for found in records.values() for matrix in found]
    return any((matrix[:, 1:-1] == 0).all(2).any() for matrix in matrices)


def check_close(got, wanted) -> None:
    """Fail unless tensors, or sequences of tensors, agree up to rounding in float32."""
    got, wanted = ([a] if isinstance(a, Tensor) else a for a in (got, wanted))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        scale = b.detach().abs().amax().item()
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-5 * scale + 1e-12)


GRADIENTS = pytest.mark.parametrize("grad", (False, True), ids=("no_grad", "grad"))
