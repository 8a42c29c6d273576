"""Networks of others as DG-Nets: what can be rewired, and what is refused with its reason."""

import pytest
import torch
from torch import nn
from torchvision import models

from gram_backbones.dgnet.rewire import rewire
from tests.dgnet.open_edges import check_close, settle

NO_MAPS = r"(NHWC|channels|feature maps|\(B, C, H, W\))"


@pytest.mark.grid
@pytest.mark.parametrize(
    ("build", "stages", "size", "message"),
    (
        (models.swin_t, ("features.1",), 64, rf"features\.1.*{NO_MAPS}"),
        (models.swin_t, ("features.1", "features.5"), 64, rf"features\.[15].*{NO_MAPS}"),
        (models.vit_b_16, ("encoder.layers",), 224, rf"encoder\.layers.*{NO_MAPS}"),
        (models.densenet121, ("features.denseblock1",), 64, r"denseblock1.*channels"),
    ),
    ids=("swin", "swin_twice", "vit", "densenet"),
)
def test_rewire_refuses_what_it_cannot_compute_and_says_why(build, stages, size, message):
    network = build()
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rewire(network, stages, torch.zeros(1, 3, size, size))
    assert list(network.state_dict()) == before


@pytest.mark.grid
@pytest.mark.parametrize(
    ("build", "stage"),
    (
        (models.convnext_tiny, "features.1"),
        (models.efficientnet_b0, "features.2"),
        (models.resnext50_32x4d, "layer1"),
    ),
)
def test_rewire_takes_stages_of_maps_whatever_the_blocks_do_inside(build, stage):
    network = settle(build(num_classes=3)).eval()
    x = torch.randn(2, 3, 64, 64)
    chain = rewire(network, (stage,), x[:1], edges="chain")
    with torch.no_grad():
        check_close(chain(x), network(x))
        assert rewire(network, (stage,), x[:1])(x).isfinite().all()


class Block(nn.Sequential):
    """A residual block that returns what ``give`` makes of its output."""

    def __init__(self, *layers, give=lambda x: x):
        super().__init__(*layers)
        self.give = give

    def forward(self, x):
        return self.give(super().forward(x) + x)


class ChannelsLast(nn.Module):
    """Maps ``(B, H, W, C)``, with a convolution inside."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("block", "example", "message"),
    (
        (lambda: ChannelsLast(8), (1, 16, 16, 8), "channels last"),
        (lambda: Block(nn.BatchNorm2d(8), nn.ReLU()), (1, 8, 16, 16), None),
        (lambda: Block(nn.Conv2d(8, 8, 1), give=lambda x: (x,)), (1, 8, 16, 16), "tuple"),
        (lambda: Block(nn.Conv3d(8, 8, 1)), (1, 8, 4, 16, 16), "volumes"),
    ),
    ids=("channels_last", "no_convolution", "tuple", "video"),
)
def test_rewire_looks_at_what_blocks_compute(block, example, message):
    network = nn.Sequential(nn.Identity(), nn.Sequential(block(), block()))
    if message == "tuple":
        network[1] = nn.Sequential(block())
    x = torch.randn(example)
    if message:
        with pytest.raises(ValueError, match=message):
            rewire(network, ["1"], x)
    else:
        assert rewire(network, ["1"], x)(x).shape == x.shape


def test_rewire_takes_a_stage_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential(Block(nn.Conv2d(8, 8, 1)), Block(nn.Conv2d(8, 8, 1)))

        def forward(self, x):
            return self.stage(x).mean() + self.stage(x[..., ::2]).mean()

    x = torch.randn(2, 8, 16, 16)
    assert rewire(Twice(), ["stage"], x)(x).isfinite()
