"""Turn any staged network into a DG-Net: its stages' blocks become nodes of dynamic graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .graph import DynamicGraph, graph_for
from .sums import ValidSizes


class DynamicStage(nn.Module):
    """A stage that stands in for an ``nn.Sequential`` of blocks, under the same names.

    Args:
        stage: the blocks, in order.
        graph: their edges.

    Examples:
        >>> from torchvision.models.resnet import BasicBlock
        >>> blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        >>> stage = DynamicStage(blocks, graph_for(list(blocks), 16, 16, stride=1))
        >>> stage(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, stage: nn.Sequential, graph: DynamicGraph):
        super().__init__()
        self._names = list(stage._modules)
        for name, block in stage._modules.items():
            self.add_module(name, block)
        self.graph = graph

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[nn.Module]:
        return (getattr(self, name) for name in self._names)

    def __getitem__(self, index: int) -> nn.Module:
        return getattr(self, self._names[index])

    def forward(self, x: Tensor, valid_sizes: ValidSizes | None = None) -> Tensor:
        """Map ``(B, C_in, H, W)`` as the stage did; ``valid_sizes`` as in :class:`DynamicGraph`."""
        return self.graph(x, list(self), valid_sizes)


def rewire(network: nn.Module, stages: Sequence[str], example: Tensor, **options) -> nn.Module:
    """A copy of a network with some of its stages as complete dynamic graphs.

    Blocks of torchvision's types run as in DG-Net. Blocks of other types run as they are, fed with
    the weighted sum; register them with ``dgnet.blocks.block_parts`` to make the input node
    reuse their shortcut's projection.

    Args:
        network: left as it is; the copy keeps the names of its tensors.
        stages: paths of ``nn.Sequential`` modules whose blocks all return one shape.
        example: an input of the network, to measure shapes with.
        options: of :class:`gram_backbones.dgnet.graph.DynamicGraph`.

    Raises:
        ValueError: a path that is no ``nn.Sequential`` in the network, a stage that the example
            does not run through or that repeats a block, or blocks that do not map tensors
            ``(B, C, H, W)`` of any size to tensors of one shape.

    Examples:
        >>> from torchvision.models import resnet18
        >>> network = rewire(resnet18(), ["layer3", "layer4"], torch.zeros(1, 3, 64, 64))
        >>> network(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 1000])
    """
    if not stages:
        raise ValueError("stages is empty; name at least one nn.Sequential of the network")
    network = copy.deepcopy(network)
    found = dict(network.named_modules())
    sequences = {path: _find_stage(path, found) for path in stages}
    measured = _measure(network, sequences, example)
    for path, sequence in sequences.items():
        blocks = list(sequence)
        with _in_eval_mode(sequence):
            before, after, *_ = _check_maps(path, blocks, measured[path])
        stride = (-(-before[2] // after[2]), -(-before[3] // after[3]))
        graph = graph_for(blocks, before[1], after[1], stride, **options)
        place = next(sequence.parameters())
        graph = graph.to(place.device, place.dtype).train(sequence.training)
        stage = DynamicStage(sequence, graph)
        parent, _, name = path.rpartition(".")
        stage.training = sequence.training
        setattr(network.get_submodule(parent), name, stage)
    return network


def _find_stage(path: str, found: Mapping[str, nn.Module]) -> nn.Sequential:
    """The sequence of blocks that a path leads to; ValueError where it leads to none."""
    stage = found.get(path)
    if not isinstance(stage, nn.Sequential) or not len(stage):
        known = [name for name, m in found.items() if name and isinstance(m, nn.Sequential)]
        reason = "is not in the network"
        if stage is not None:
            reason = (
                f"is a {type(stage).__name__}, not an nn.Sequential of blocks that each map the "
                "output of the one before to its shape (a dense block is none: it changes the "
                "number of channels with every layer)"
            )
        raise ValueError(f"{path!r} {reason}; allowed are {known}")
    blocks = list(stage)
    if len({id(block) for block in blocks}) < len(blocks) or "graph" in stage._modules:
        raise ValueError(f"{path!r} repeats a block, or has one named 'graph'")
    return stage


def _check_maps(
    path: str, blocks: list[nn.Module], measured: list[object]
) -> list[tuple[int, ...]]:
    """The shapes of a stage's input and of every block's output.

    Args:
        path: of the stage.
        blocks: of the stage.
        measured: the stage's input, and every block's output.

    Raises:
        ValueError: the blocks do not return maps of one shape, channels first.
    """
    maps = [m for m in measured if isinstance(m, Tensor)]
    if bad := [type(m).__name__ for m in measured if not isinstance(m, Tensor)]:
        raise ValueError(f"the blocks of {path!r} take or return {bad}; a graph takes tensors")
    shapes = [tuple(m.shape) for m in maps]
    if len(set(shapes[1:])) > 1:
        raise ValueError(
            f"the blocks of {path!r} return {shapes[1:]}; a graph sums their outputs and takes "
            "equal shapes (dense and transition blocks change the number of channels)"
        )
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f"the blocks of {path!r} map {shapes[0]} to {shapes[1]}; a graph takes maps "
            "(B, C, H, W), not sequences of tokens or volumes"
        )
    # A wider map has as many channels, unless the last axis is the channels.
    x = maps[0]
    try:
        with torch.no_grad():
            for block in blocks:
                x = block(torch.cat([x] * 4, 3) if x is maps[0] else x)
        as_maps = x.shape[1] == shapes[1][1] and x.shape[3] > shapes[1][3]
        cause = None
    except Exception as error:  # whatever a block makes of channels that are not there
        as_maps, cause = False, error
    if not as_maps:
        raise ValueError(
            f"the blocks of {path!r} do not map a wider {shapes[0]}: they seem to have channels "
            "last, as Swin does, or to take one size alone; a graph takes (B, C, H, W)"
        ) from cause
    return shapes


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _measure(
    network: nn.Module, stages: dict[str, nn.Sequential], example: Tensor
) -> dict[str, list[object]]:
    """For each stage its input and every block's output, the first time that it runs."""
    found: dict[str, list[object]] = {path: [] for path in stages}
    hooks = []

    def keep(path: str, value: object) -> None:
        if len(found[path]) <= len(stages[path]):
            found[path].append(value)

    for path, stage in stages.items():
        first = stage[0]
        hooks.append(first.register_forward_pre_hook(lambda _m, args, p=path: keep(p, args[0])))
        hooks += [
            block.register_forward_hook(lambda _m, _args, out, p=path: keep(p, out))
            for block in stage
        ]
    try:
        with torch.no_grad(), _in_eval_mode(network):
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if unused := [path for path, values in found.items() if not values]:
        raise ValueError(f"the example does not run through {unused}")
    return found
