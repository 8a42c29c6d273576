"""Residual blocks taken apart: what a dynamic graph needs to know about a block.

``block_parts`` is a single-dispatch function: register your own block type with
``@block_parts.register``. Other types, and subclasses with a ``forward`` of their own, run as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial, singledispatch
from typing import Any

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..fused import run, run_all


@dataclass(frozen=True)
class BlockParts:
    """A block as ``activation(branch(x) + shortcut(x))``.

    Attributes:
        branch: the residual branch, without the last activation.
        adds_shortcut: whether the block adds a shortcut at all.
        projection: the shortcut's module; None where the shortcut is the identity or absent.
        activation: applied to the sum, may work in place; None for a linear output.
        known: whether the block's type is registered; otherwise ``branch`` is the whole block.
        layers: the branch's modules in order, where it is nothing else; convolutions and norms
            that follow each other may then be computed as one.

    Examples:
        >>> import torch
        >>> conv = nn.Conv2d(8, 8, 3, padding=1)
        >>> parts = BlockParts(conv, activation=torch.relu)  # relu(conv(x) + x)
        >>> parts.adds_shortcut, parts.projection
        (True, None)
    """

    branch: Callable[[Tensor], Tensor]
    adds_shortcut: bool = True
    projection: nn.Module | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    known: bool = True
    layers: tuple[nn.Module, ...] = ()


@singledispatch
def block_parts(block: nn.Module) -> BlockParts:
    """The parts of a block; a block of an unknown type is a branch as a whole.

    Examples:
        >>> parts = block_parts(BasicBlock(64, 64))
        >>> parts.adds_shortcut, parts.activation
        (True, ReLU(inplace=True))
        >>> block_parts(nn.Conv2d(64, 64, 1)).known
        False
    """
    return _opaque(block)


def _opaque(block: nn.Module) -> BlockParts:
    return BlockParts(block, adds_shortcut=False, known=False)


def _chain(*layers: nn.Module, **parts) -> BlockParts:
    return BlockParts(partial(run_all, layers), layers=layers, **parts)


@block_parts.register
def _(block: BasicBlock) -> BlockParts:
    layers = (block.conv1, block.bn1, block.relu, block.conv2, block.bn2)
    return _chain(*layers, projection=block.downsample, activation=block.relu)


@block_parts.register
def _(block: Bottleneck) -> BlockParts:
    layers = (block.conv1, block.bn1, block.relu, block.conv2, block.bn2, block.relu)
    layers += (block.conv3, block.bn3)
    return _chain(*layers, projection=block.downsample, activation=block.relu)


@block_parts.register
def _(block: ResBottleneckBlock) -> BlockParts:
    return _chain(block.f, projection=block.proj, activation=block.activation)


@block_parts.register
def _(block: InvertedResidual) -> BlockParts:
    return _chain(block.conv, adds_shortcut=block.use_res_connect)


# How blocks of a class are taken apart, as of the last graph built over such blocks: Dynamo cannot
# look into the registry of block_parts.
_RESOLVED: dict[type[nn.Module], Callable[[nn.Module], BlockParts]] = {}


def parts_of(block: nn.Module) -> BlockParts:
    """:func:`block_parts`; a subclass with a ``forward`` of its own is not taken apart."""
    cls = type(block)
    return (_RESOLVED[cls] if cls in _RESOLVED else _resolve(cls))(block)


def _resolve(cls: type[nn.Module]) -> Callable[[nn.Module], BlockParts]:
    cls = getattr(cls, "original_class", cls)
    registered: Any = next(c for c in cls.__mro__ if c in block_parts.registry)
    overrides = registered is not object and cls.forward is not registered.forward
    return _opaque if overrides else block_parts.dispatch(cls)


def require_known_parts(blocks: Iterable[nn.Module]) -> None:
    """Make sure that every block can be taken apart, as ``block_shortcut=False`` needs.

    Raises:
        ValueError: blocks of unregistered types; the message names them.
    """
    if unknown := sorted({type(b).__name__ for b in blocks if not parts_of(b).known}):
        raise ValueError(
            f"block_shortcut=False takes blocks of known parts; register {unknown} with "
            "gram_backbones.dgnet.blocks.block_parts"
        )


def call_with_shortcut(
    block: nn.Module, x: Tensor, shortcut: Tensor | None, *, consume: bool = False
) -> Tensor:
    """A block's output with another shortcut than its own, or with none; its hooks fire.

    Args:
        block: of known parts.
        x: input of the branch ``(B, C_in, H_in, W_in)``.
        shortcut: what to add to the branch's output, of its shape.
        consume: the output may be written over ``shortcut``.
    """
    if not isinstance(block, _AcceptsShortcut):
        accept_shortcut(block)
    return block(x, shortcut=shortcut, consume=consume)


def accept_shortcut(block: nn.Module) -> None:
    """Let a block of known parts take a keyword ``shortcut``; called without, nothing changes.

    The block's class becomes a subclass of its class under the same name, as in
    ``torch.nn.utils.parametrize``: torchvision's ``forward`` takes no shortcut, and whoever hooks a
    block expects its hooks to fire.
    """
    cls: type = type(block)  # mypy takes type[nn.Module] for unhashable
    if _resolve(cls)(block).known and not isinstance(block, _AcceptsShortcut):
        block.__class__ = _accepting(cls)
    _RESOLVED[type(block)] = _resolve(type(block))


class _AcceptsShortcut(nn.Module):
    original_class: type[nn.Module]

    def forward(
        self, x: Tensor, *, shortcut: Tensor | None | str = "own", consume: bool = False
    ) -> Tensor:
        parts = parts_of(self)
        if isinstance(shortcut, str):
            own = x if parts.projection is None else run(parts.projection, x)
            shortcut = own if parts.adds_shortcut else None
        drop_path = self._modules.get("drop_path")  # blocks of a network with stochastic depth
        if drop_path is not None and self.training and shortcut is not None:
            out = drop_path(parts.branch(x)) + shortcut
            return out if parts.activation is None else parts.activation(out)
        return _join(parts, x, shortcut, consume)

    def __reduce__(self):
        # Pickle would look for a class made at run time by its name.
        return _new_accepting, (self.original_class,), self.__dict__


@cache
def _accepting(cls: type) -> type[nn.Module]:
    names = dict(original_class=cls, __module__=cls.__module__, __qualname__=cls.__qualname__)
    return type(cls.__name__, (_AcceptsShortcut, cls), names)


def _new_accepting(cls: type) -> nn.Module:
    return _accepting(cls).__new__(_accepting(cls))


def _join(parts: BlockParts, x: Tensor, shortcut: Tensor | None, consume: bool) -> Tensor:
    if parts.layers:
        return run_all(parts.layers, x, add=shortcut, activation=parts.activation, consume=consume)
    out = parts.branch(x)
    if shortcut is not None:
        out = out + shortcut
    return out if parts.activation is None else parts.activation(out)
