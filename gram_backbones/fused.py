"""Convolution and norm as one convolution, where the norm is fixed.

A norm that only scales and shifts can do so to the weights of the convolution before it, in
training too: w' = w · γ/σ, b' = β − μ · γ/σ. This is an optimisation of calling the modules one
after the other, which is the plain form: what traces, exports or compiles gets that, and so do
modules with hooks. Names and tensors stay those of the modules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _globals
from torchvision.ops import FrozenBatchNorm2d

from .layers import is_traced

# Norms that never train; adapters add those of their framework.
FROZEN_NORMS: set[type[nn.Module]] = {FrozenBatchNorm2d}
_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_CHANNELS_LAST = (torch.float32, torch.bfloat16, torch.float16)
# Convolution -> what its fused weight and bias were made of, and these two.
_CACHE: WeakKeyDictionary[nn.Module, tuple[list[tuple[Tensor, int]], Tensor, Tensor]]
_CACHE = WeakKeyDictionary()


def run(layers: nn.Module, x: Tensor) -> Tensor:
    """``layers(x)``; inside ``nn.Sequential`` a convolution and a fixed norm are one.

    Args:
        layers: any module; one with a ``forward`` of its own runs as it is.
        x: its input.
    """
    if type(layers).forward is not nn.Sequential.forward or _has_hooks(layers):
        return layers(x)
    return run_all(layers, x)


def run_all(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Modules one after the other; a convolution and a fixed norm after it are one."""
    layers = deque(layers)
    while layers:
        layer = layers.popleft()
        if layers and type(layer) is nn.Conv2d:
            x = conv_norm(layer, layers.popleft(), x)
        else:
            x = run(layer, x)
    return x


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, as one convolution where the norm is fixed.

    Gradients with respect to ``x``, and to the weight and bias of ``conv``, are the same.

    Args:
        conv: any convolution; other types than ``nn.Conv2d`` run as they are.
        norm: what follows it.
        x: ``(B, C_in, H, W)``.
    """
    if not _is_fixed(norm) or not _can_fuse(conv, norm) or is_traced(x):
        return norm(conv(x))
    weight, bias = _fused(conv, norm, x)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def fast_format(x: Tensor) -> Tensor:
    """``x`` in the memory format in which a CPU convolves fastest: channels last.

    What is traced stays as it is, as do other devices and dtypes.
    """
    if x.device.type != "cpu" or x.dtype not in _CHANNELS_LAST or is_traced(x):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def format_of(like: Tensor, x: Tensor) -> Tensor:
    """``x`` in the memory format of another tensor: contiguous where that is contiguous."""
    return x.contiguous() if like.is_contiguous() and not is_traced(x) else x


def forget_fused(module: nn.Module) -> None:
    """Drop the fused weights that are kept for the convolutions of a module."""
    if _CACHE:
        for child in module.modules():
            _CACHE.pop(child, None)


def _is_fixed(norm: nn.Module) -> bool:
    """Whether a norm is an affine map that nothing trains."""
    if type(norm) in FROZEN_NORMS:
        return True
    if type(norm) not in _BATCH_NORMS or norm.training or norm.running_mean is None:
        return False
    return not torch.is_grad_enabled() or not any(p.requires_grad for p in norm.parameters())


def _can_fuse(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not _has_hooks(conv)
        and not _has_hooks(norm)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
    )


def _fused(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of both as one; kept as long as no gradient is asked for."""
    sources = [conv.weight, conv.bias, norm.weight, norm.bias]
    sources = [t for t in (*sources, norm.running_mean, norm.running_var) if t is not None]
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
    kept = not trains and not any(t.is_inference() for t in sources)
    if kept and (entry := _CACHE.get(conv)) is not None:
        known, weight, bias = entry
        if len(known) == len(sources) and all(
            t is s and v == s._version for (t, v), s in zip(known, sources)
        ):
            return weight, bias
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    bias = -mean * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype)
    bias = bias.to(weight.dtype)
    if kept:
        if x.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)
        _CACHE[conv] = [(t, t._version) for t in sources], weight, bias
    return weight, bias
