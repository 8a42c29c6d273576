"""Counting: parameters, and the multiply-adds of convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in all parameters, frozen ones included (buffers do not count)."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_conv_flops(module: nn.Module, image: int | tuple[int, int] | Tensor = 224) -> int:
    """Multiply-adds of all convolutions in one forward pass in evaluation mode.

    This is the count that papers print as FLOPs; a linear classifier is left out. What DG-Net
    leaves out of an image is not counted.

    Args:
        module: on any device.
        image: height and width in pixels of an image of zeros, or images ``(B, 3, H, W)``.
    """
    if not isinstance(image, Tensor):
        place = next(module.parameters())
        height, width = (image, image) if isinstance(image, int) else image
        image = torch.zeros(1, 3, height, width, dtype=place.dtype, device=place.device)
    training = module.training
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module.eval()(image)
    finally:
        module.train(training)
    # torch counts a multiply-add as two operations.
    return counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0) // 2
