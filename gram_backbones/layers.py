"""Layers shared by all families: norms by name, stochastic depth, freezing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

Norm = str | Callable[[int], nn.Module]


def group_norm(channels: int, max_groups: int = 32) -> nn.GroupNorm:
    """Group norm with the largest number of groups up to ``max_groups`` that divides ``channels``.

    The widths of a grammar's nodes are seldom multiples of 32.
    """
    groups = next(g for g in range(min(max_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": group_norm,
}


def resolve_norm(norm: Norm) -> Callable[[int], nn.Module]:
    """The factory ``channels -> module`` for a norm given by name or as a factory.

    Raises:
        ValueError: unknown name.

    Examples:
        >>> resolve_norm("BN")(16)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
        >>> resolve_norm("GN")(48).num_groups  # the largest number up to 32 that divides 48
        24
    """
    if callable(norm):
        return norm
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; allowed are {sorted(NORMS)} or a factory")
    return NORMS[norm]


def init_scale(norm: nn.Module, *, learned: float | None = None, frozen: float) -> None:
    """Set the initial scale of a norm.

    Args:
        norm: any norm; nothing happens where it has no scale.
        learned: value for a scale that trains; None leaves it.
        frozen: value for a scale that is fixed (frozen BN). Its statistics do not normalise
            before weights are loaded, and a scale of 0 could never leave 0.
    """
    scale = getattr(norm, "weight", None)
    trains = isinstance(scale, nn.Parameter) and scale.requires_grad
    value = learned if trains else frozen
    if scale is not None and value is not None:
        nn.init.constant_(scale, value)


def stochastic_depth(rate: float, block: int, n_blocks: int) -> StochasticDepth | None:
    """Drop path of a block's residual branch, image by image; None where the rate is 0.

    Args:
        rate: of the network's last block; it rises linearly from 0 at the first.
        block: which block of the network, from 0.
        n_blocks: number of the network's blocks.

    Raises:
        ValueError: a rate that is no probability, or 1.

    Examples:
        >>> [stochastic_depth(0.2, block, 3) for block in range(3)]
        [None, StochasticDepth(p=0.1, mode=row), StochasticDepth(p=0.2, mode=row)]
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path is {rate}; allowed are 0 and more, below 1")
    own = rate * block / max(1, n_blocks - 1)
    return StochasticDepth(own, "row") if own else None


def freeze(module: nn.Module) -> None:
    """Freeze a module: no gradients, and eval mode, which fixes statistics and dropout too."""
    module.eval()
    module.requires_grad_(False)


def has_fixed_parts(module: nn.Module) -> bool:
    """Whether training leaves something unchanged: frozen parameters, or statistics of norms."""
    norms = (m for m in module.modules() if getattr(m, "running_mean", None) is not None)
    fixed = any(not (isinstance(m, _NormBase) and m.training) for m in norms)
    return fixed or not all(p.requires_grad for p in module.parameters())


def is_traced(x: Tensor) -> bool:
    """Whether what happens to ``x`` is recorded, or transformed, to be run on other tensors.

    Tensors without values count (fake, symbolic, batched, on meta), the modes that make_fx and
    export run under, and the capture of a CUDA graph.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    if forward_ad._current_level >= 0:  # fused operators have no forward derivative
        return True
    if x.is_meta or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else ()
    return get_proxy_mode() is not None or any(mode.is_infra_mode() for mode in modes)
