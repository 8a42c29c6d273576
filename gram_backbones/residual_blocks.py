"""Residual blocks taken apart: what a dynamic graph has to know of a block.

``block_parts`` is a single-dispatch function: register one's own block type with
``@block_parts.register``. Types that it does not know run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck


@dataclass(frozen=True)
class BlockParts:
    """A block as ``activation(branch(x) + shortcut(x))``.

    A dynamic graph runs the parts, so hooks on the block itself do not fire; those on its
    convolutions do. In CPU inference feature maps share memory: a hook that keeps one clones it.

    Attributes:
        branch: the residual branch, without the last activation.
        adds_shortcut: whether the block adds a shortcut at all.
        projection: the shortcut's module; None where the shortcut is the identity or absent.
        activation: applied to the sum, may work in place; None for a linear output.
        known: whether the block's type is registered; otherwise ``branch`` is the whole block.
    """

    branch: Callable[[Tensor], Tensor]
    adds_shortcut: bool = True
    projection: nn.Module | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    known: bool = True


@singledispatch
def block_parts(block: nn.Module) -> BlockParts:
    """The parts of a block; one of an unknown type is all branch."""
    return BlockParts(block, adds_shortcut=False, known=False)


@block_parts.register
def _(block: BasicBlock) -> BlockParts:
    def branch(x: Tensor) -> Tensor:
        x = block.relu(block.bn1(block.conv1(x)))
        return block.bn2(block.conv2(x))

    return BlockParts(branch, projection=block.downsample, activation=block.relu)


@block_parts.register
def _(block: Bottleneck) -> BlockParts:
    def branch(x: Tensor) -> Tensor:
        x = block.relu(block.bn1(block.conv1(x)))
        x = block.relu(block.bn2(block.conv2(x)))
        return block.bn3(block.conv3(x))

    return BlockParts(branch, projection=block.downsample, activation=block.relu)


@block_parts.register
def _(block: ResBottleneckBlock) -> BlockParts:
    return BlockParts(block.f, projection=block.proj, activation=block.activation)


@block_parts.register
def _(block: InvertedResidual) -> BlockParts:
    return BlockParts(block.conv, adds_shortcut=block.use_res_connect)


def require_known_parts(blocks: Iterable[nn.Module]) -> None:
    """Make sure that every block can be taken apart, as ``block_shortcut=False`` needs.

    Raises:
        ValueError: blocks of unregistered types; the message names them.
    """
    if unknown := sorted({type(b).__name__ for b in blocks if not block_parts(b).known}):
        raise ValueError(
            f"block_shortcut=False takes blocks of known parts; register {unknown} with "
            "gram_backbones.residual_blocks.block_parts"
        )
