"""Any staged network as a DG-Net: its stages' blocks become nodes of dynamic graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .dynamic_graph import DynamicGraph, graph_for
from .feature_maps import ValidSizes


class DynamicStage(nn.Module):
    """A stage that stands in for an ``nn.Sequential`` of blocks, under the same names.

    Args:
        stage: the blocks, in order.
        graph: their edges.
    """

    def __init__(self, stage: nn.Sequential, graph: DynamicGraph):
        super().__init__()
        self._names = list(stage._modules)
        for name, block in stage._modules.items():
            self.add_module(name, block)
        self.add_module("graph", graph)

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
    the weighted sum; register them with ``residual_blocks.block_parts`` to make the input node
    reuse their shortcut's projection.

    Args:
        network: left as it is; the copy keeps the names of its tensors.
        stages: paths of ``nn.Sequential`` modules whose blocks all return one shape.
        example: an input of the network, to measure shapes with.
        options: of :class:`gram_backbones.dynamic_graph.DynamicGraph`.

    Raises:
        ValueError: a path that is no ``nn.Sequential`` in the network, a stage that the example
            does not run through or that repeats a block, or blocks of unequal output shapes.
    """
    if not stages:
        raise ValueError("stages is empty; name at least one nn.Sequential of the network")
    network = copy.deepcopy(network)
    found = dict(network.named_modules())
    for path in stages:
        if not isinstance(found.get(path), nn.Sequential) or not len(found[path]):
            known = [name for name, m in found.items() if name and isinstance(m, nn.Sequential)]
            raise ValueError(f"{path!r} is no stage of the network; allowed are {known}")
        blocks = list(found[path])
        if len({id(block) for block in blocks}) < len(blocks) or "graph" in found[path]._modules:
            raise ValueError(f"{path!r} repeats a block, or has one named 'graph'")
    shapes = _measure(network, {path: found[path] for path in stages}, example)
    for path in stages:
        blocks = list(found[path])
        before, *after = shapes[path]
        if len(set(after)) > 1:
            raise ValueError(f"the blocks of {path!r} return {after}; a graph takes equal shapes")
        stride = tuple(-(-a // b) for a, b in zip(before[2:], after[0][2:]))
        graph = graph_for(blocks, before[1], after[0][1], stride, **options)
        place = next(found[path].parameters())
        graph = graph.to(place.device, place.dtype).train(found[path].training)
        stage = DynamicStage(found[path], graph)
        parent, _, name = path.rpartition(".")
        stage.training = found[path].training
        setattr(network.get_submodule(parent), name, stage)
    return network


def _measure(
    network: nn.Module, stages: dict[str, nn.Sequential], example: Tensor
) -> dict[str, list[tuple[int, ...]]]:
    """For each stage the shapes of its input and of every block's output."""
    shapes: dict[str, list[tuple[int, ...]]] = {path: [] for path in stages}
    hooks = []
    for path, stage in stages.items():
        hooks.append(
            stage[0].register_forward_pre_hook(
                lambda _m, args, path=path: shapes[path].append(tuple(args[0].shape))
            )
        )
        hooks += [
            block.register_forward_hook(
                lambda _m, _a, out, path=path: shapes[path].append(tuple(out.shape))
            )
            for block in stage
        ]
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    if unused := [path for path, found in shapes.items() if not found]:
        raise ValueError(f"the example does not run through {unused}")
    return shapes
