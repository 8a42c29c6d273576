"""Counting: parameters, and the multiply-adds of convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in all parameters, frozen ones included (buffers do not count).

    Examples:
        >>> count_parameters(nn.Linear(4, 3))
        15
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_conv_flops(module: nn.Module, image: int | tuple[int, int] | Tensor = 224) -> int:
    """Multiply-adds of all convolutions in one forward pass in evaluation mode.

    This is the count that papers print as FLOPs; a linear classifier is left out. Edges and blocks
    that DG-Net skips for an image are not counted.

    Args:
        module: on any device.
        image: height and width in pixels of an image of zeros, or images ``(B, 3, H, W)``.

    Examples:
        >>> count_conv_flops(nn.Conv2d(3, 8, 3, padding=1), 32)  # 8 · 3 · 3² · 32²
        221184
        >>> from gram_backbones import create_model
        >>> model = create_model("aognet_4m")
        >>> count_conv_flops(model, torch.zeros(2, 3, 64, 64)) == 2 * count_conv_flops(model, 64)
        True
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
