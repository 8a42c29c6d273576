"""A fixed norm as part of the convolution before it: where it can be, and the weights.

w' = w · γ/σ, b' = β − μ · γ/σ.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _globals
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.ops import FrozenBatchNorm2d

# Norms that never train; adapters add those of their framework.
FROZEN_NORMS: set[type[nn.Module]] = {FrozenBatchNorm2d}
_BATCH_NORM_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
# Convolution -> what its fused weight and bias were made of, and these two.
_CACHE: WeakKeyDictionary[nn.Module, tuple[_Sources, Tensor, Tensor]] = WeakKeyDictionary()
# Fused optimisers write to parameters without telling autograd, which counts versions.
register_optimizer_step_post_hook(lambda *_: _CACHE.clear())


def is_fixed(norm: Any) -> bool:
    """Whether a norm is an affine map that nothing trains."""
    if type(norm) in FROZEN_NORMS:
        return True
    if type(norm).forward not in _BATCH_NORM_FORWARDS or norm.training:
        return False
    if norm.running_mean is None:
        return False
    return not torch.is_grad_enabled() or not any(p.requires_grad for p in norm.parameters())


def can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a fixed norm can be part of the module before it: nothing sees what is between."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not has_hooks(conv)
        and not has_hooks(norm)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its class's ``forward``."""
    return bool(
        "forward" in vars(module)  # replaced on the instance, as offloading does
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
    )


def fold(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """W' = w · γ/σ and b' = β + (b − μ) · γ/σ, in the dtype of the weight."""
    scale, bias = scale_and_shift(conv, norm)
    weight = conv.weight * scale[:, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def scale_and_shift(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Per channel, γ/σ and β + (b − μ) · γ/σ."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


def kept_fold(conv: nn.Conv2d, norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of both as one; kept as long as no gradient is asked for."""
    sources = [conv.weight, conv.bias, norm.weight, norm.bias]
    sources = [t for t in (*sources, norm.running_mean, norm.running_var) if t is not None]
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
    kept = not trains and not any(t.is_inference() for t in sources)
    if not kept:
        return fold(conv, norm)
    states = _Sources(sources, norm.eps)
    if (entry := _CACHE.get(conv)) is not None and entry[0].are(states):
        return entry[1:]
    with torch.inference_mode(False), torch.no_grad():  # usable with gradients later on
        weight, bias = fold(conv, norm)
        if x.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)
        _CACHE[conv] = states.hold(), weight, bias
    return weight, bias


def forget_fused(module: nn.Module) -> None:
    """Drop the fused weights that are kept for the convolutions of a module."""
    if _CACHE:
        for child in module.modules():
            _CACHE.pop(child, None)


class _Sources:
    """Tensors, and what shows that they have changed: their versions and addresses, and ε."""

    def __init__(self, tensors: list[Tensor], eps: float):
        self.tensors = tensors
        self.state = [(t._version, t.data_ptr()) for t in tensors], eps
        self.held: list[Tensor] = []

    def are(self, others: _Sources) -> bool:
        """Whether these are the same tensors, unchanged."""
        pairs = zip(self.tensors, others.tensors)
        return self.state == others.state and all(a is b for a, b in pairs)

    def hold(self) -> _Sources:
        """Keep the memory, so that no new tensor gets its address."""
        self.held = [t.detach() for t in self.tensors]
        return self
