"""Dilation instead of stride in the last stages of a base network."""

from __future__ import annotations

from torch import nn

from .blocks import block_parts
from .variants import Layout


def dilate_stages(layout: Layout, network: nn.Module, output_stride: int) -> None:
    """Keep the resolution of the stages beyond an output stride, in place.

    A convolution that would halve the resolution has stride 1, and those after it have twice the
    dilation, so that the pixels that a strided network would have are the same.

    Args:
        layout: of the base network.
        network: the base network.
        output_stride: the largest stride that stays.
    """
    dilation = 1
    for stage in layout.stages:
        for path in stage.block_names(network):
            block = network.get_submodule(path)
            projection = block_parts(block).projection
            beside = set() if projection is None else set(projection.modules())
            for conv in block.modules():
                if not isinstance(conv, nn.Conv2d):
                    continue
                halves = conv.stride == (2, 2) and stage.stride > output_stride
                if halves:
                    conv.stride = (1, 1)
                if conv in beside:
                    continue
                conv.dilation = (dilation, dilation)
                conv.padding = tuple(int(side) * dilation for side in conv.padding)
                dilation *= 2 if halves else 1
