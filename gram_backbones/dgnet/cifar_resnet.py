"""ResNet for CIFAR: three stages of basic blocks on images of 32 pixels.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
The blocks are torchvision's, and modules have the names of torchvision's ResNets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): subsampling, then channels of zeros.

    Args:
        in_channels, out_channels: the zeros are split evenly before and after the input's channels.
        stride: of the subsampling.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, ⌈H / stride⌉, ⌈W / stride⌉)``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, *self.padding))


class CifarResNet(nn.Module):
    """ResNet with 6n + 2 layers: a 3×3 convolution, three stages of n blocks, a classifier.

    Args:
        n_blocks: blocks per stage, n.
        num_classes: size of the classifier.
        norm_layer: builds a norm from its number of channels.

    Examples:
        >>> CifarResNet(3)(torch.randn(2, 3, 32, 32)).shape  # ResNet-20
        torch.Size([2, 10])
    """

    def __init__(
        self,
        n_blocks: int,
        num_classes: int = 10,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = norm_layer(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(n_blocks, WIDTHS[0], WIDTHS[0], norm_layer)
        self.layer2 = _stage(n_blocks, WIDTHS[0], WIDTHS[1], norm_layer)
        self.layer3 = _stage(n_blocks, WIDTHS[1], WIDTHS[2], norm_layer)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` to logits ``(B, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.mean(x, (2, 3)))


def _stage(
    n_blocks: int, in_channels: int, channels: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    """A stage of basic blocks; one that widens its input halves the resolution."""
    stride, shortcut = 1, None
    if in_channels != channels:
        stride, shortcut = 2, PaddedShortcut(in_channels, channels, 2)
    blocks = [BasicBlock(in_channels, channels, stride, shortcut, norm_layer=norm_layer)]
    blocks += [BasicBlock(channels, channels, norm_layer=norm_layer) for _ in range(n_blocks - 1)]
    return nn.Sequential(*blocks)
