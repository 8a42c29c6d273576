"""Convolution and norm as one convolution, where the norm is fixed.

A norm that only scales and shifts can do so to the weights of the convolution before it, in
training too: w' = w · γ/σ, b' = β − μ · γ/σ. This is an optimisation of calling the modules one
after the other, which is the plain form: what traces, exports or compiles gets that, and so do
modules with hooks. Names and tensors stay those of the modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import can_fold, fold, forget_fused, has_hooks, is_fixed, kept_fold, scale_and_shift
from .layers import is_traced

if TYPE_CHECKING:
    from typing_extensions import Self

_CHANNELS_LAST = (torch.float32, torch.bfloat16, torch.float16)
_ONLY_INFERS = "a deployed network only infers; train the one it was made from"
_unfused = 0  # contexts of unfused that are open


class KeepsFused(nn.Module):
    """Mixin of networks and stages: a change of mode drops the fused weights that are kept."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode; weights that were written to behind autograd's back count again.

        Raises:
            ValueError: ``mode`` is True in a deployed network, which stays in evaluation mode.
        """
        if mode and is_deployed(self):
            raise ValueError(_ONLY_INFERS)
        super().train(mode)
        forget_fused(self)
        return self


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``, in place."""
    return F.relu(x, inplace=True)


def run(layers: nn.Module, x: Tensor) -> Tensor:
    """``layers(x)``; inside ``nn.Sequential`` a convolution and a fixed norm are one.

    Args:
        layers: any module; one with a ``forward`` of its own runs as it is.
        x: its input.
    """
    return run_all((layers,), x)


def run_all(
    layers: Iterable[nn.Module],
    x: Tensor,
    *,
    add: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    consume: bool = False,
) -> Tensor:
    """``activation(layers(x) + add)``, with a convolution and what follows it in one operator.

    Args:
        layers: modules, one after the other.
        x: input of the first.
        add: of the shape of the last one's output.
        activation: may work in place.
        consume: ``add`` is needed no more; the result may be written over it.
    """
    layers = list(_flat(layers))
    while layers:
        layer = layers.pop(0)
        if type(layer) is FusedConv:
            while layers and type(layers[0]) is nn.Identity and not has_hooks(layers[0]):
                layers.pop(0)
            if layers or layer.relu:
                followed = bool(layers) and _is_relu(layers[0])
                x = layer(x, relu=followed)
                if followed:
                    layers.pop(0)
            else:
                followed = _is_relu(activation)
                x, add = layer(x, add, relu=followed, consume=consume), None
                activation = None if followed else activation
        elif layers and type(layer) is nn.Conv2d:
            x = conv_norm(layer, layers.pop(0), x)
        else:
            x = layer(x)
    if add is not None:
        x = x + add
    return x if activation is None else activation(x)


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Modules with those inside ``nn.Sequential`` in its place."""
    for layer in layers:
        if type(layer) is not FusedConv and _is_sequence(layer) and not has_hooks(layer):
            yield from _flat(layer.children())
        else:
            yield layer


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _is_relu(function: Callable[[Tensor], Tensor] | None) -> bool:
    return function is relu or (type(function) is nn.ReLU and not has_hooks(function))


class FusedConv(nn.Module):
    """A convolution with its norm folded in, for inference: ``ReLU(conv(x) + add)``.

    One operator where the device has one: oneDNN's on CPUs, with weights packed at the first call,
    cuDNN's on CUDA. Elsewhere, and in traces, it is a convolution, a sum and a ReLU.

    Args:
        conv: with zero padding.
        norm: a fixed norm or None.

    Attributes:
        relu: whether a ReLU follows at every call.

    Raises:
        ValueError: a norm that uses statistics of the batch, or another padding.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None):
        super().__init__()
        with torch.no_grad():
            if conv.padding_mode != "zeros" or not (norm is None or is_fixed(norm)):
                raise ValueError(f"{norm} after {conv} cannot be folded into its weights")
            weight, bias = (conv.weight, conv.bias) if norm is None else fold(conv, norm)
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.options: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.relu = False
        self.kept: tuple[Tensor, Tensor] | None = None  # the weight, and the same packed
        self.eval()

    def forward(
        self,
        x: Tensor,
        add: Tensor | None = None,
        *,
        relu: bool = False,
        consume: bool = False,
    ) -> Tensor:
        """Map ``(B, C_in, H_in, W_in)`` to ``(B, C, H, W)``, the shape of ``add``.

        With ``consume`` the result may be written over ``add``.
        """
        relu = relu or self.relu
        if not (torch.is_grad_enabled() or is_traced(x) or isinstance(self.options[1], str)):
            if x.dtype == self.weight.dtype and x.device.type == "cpu" and _has_onednn(x.dtype):
                return self._on_cpu(x, add, relu, consume)
            if x.dtype == self.weight.dtype and x.is_cuda and relu and _has_cudnn(x):
                return self._on_cuda(x, add)
        out = F.conv2d(x, self.weight, self.bias, *self.options)
        out = out if add is None else out + add
        return F.relu(out, inplace=True) if relu else out

    def _on_cpu(self, x: Tensor, add: Tensor | None, relu: bool, consume: bool) -> Tensor:
        stride, padding, dilation, groups = self.options
        after = "relu" if relu else "none"
        if self.kept is None or self.kept[0] is not self.weight:
            # Any size serves: the layout hardly depends on it, and all sizes are computed right.
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the size
            dense = self.weight.contiguous().to_mkldnn()
            self.kept = self.weight, reorder(dense, padding, stride, dilation, groups, x.shape)
        arguments = (self.kept[1], self.bias, padding, stride, dilation, groups)
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *arguments, after, [], "")
        last: Any = (*arguments, "add", 1.0, "relu" if relu else None, [], None)
        # A slice, or a map in another format, cannot be written to.
        alone = add.untyped_storage().nbytes() == add.nelement() * add.element_size()
        if consume and alone and add.is_contiguous(memory_format=torch.channels_last):
            return torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *last)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, add, *last)

    def _on_cuda(self, x: Tensor, add: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self.options
        if add is None:
            return torch.cudnn_convolution_relu(
                x, self.weight, self.bias, stride, padding, dilation, groups
            )
        return torch.cudnn_convolution_add_relu(
            x, self.weight, add, 1.0, self.bias, stride, padding, dilation, groups
        )

    def train(self, mode: bool = True) -> FusedConv:
        """Eval mode only.

        Raises:
            ValueError: ``mode`` is True.
        """
        if mode:
            raise ValueError(_ONLY_INFERS)
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        raise ValueError("a deployed network takes no weights; load them and deploy again")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "kept": None}  # packed tensors can be neither copied nor saved


def _has_onednn(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (
        dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    )


def _has_cudnn(x: Tensor) -> bool:
    if x.dtype not in _CHANNELS_LAST or torch.is_autocast_enabled("cuda"):
        return False
    return torch.backends.cudnn.is_acceptable(x)


def deploy(module: nn.Module) -> nn.Module:
    """A copy for inference: norms folded into convolutions for good, fused operators.

    The copy has other tensors, cannot be trained and takes no weights.

    Args:
        module: a network of this package, or a detector that holds some; the rest is copied as
            it is.

    Returns:
        The copy in evaluation mode; equal to ``module`` but for rounding.

    Examples:
        >>> from gram_backbones import create_model
        >>> model = create_model("aognet_4m", features_only=True).eval()
        >>> with torch.inference_mode():
        ...     features = deploy(model)(torch.randn(1, 3, 64, 64))
    """
    module = copy.deepcopy(module).eval()
    for network in list(module.modules()):
        if hasattr(network, "conv_chains") and callable(network.conv_chains):
            places = _places(network)
            for chain in list(network.conv_chains()):
                _fold(chain, places)
            _shorten(network)
    return module


def is_deployed(module: nn.Module) -> bool:
    """Whether :func:`deploy` made it."""
    return any(type(child) is FusedConv for child in module.modules())


def sequential_chains(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules of every ``nn.Sequential`` inside a module, in order."""
    for child in module.modules():
        if _is_sequence(child):
            yield list(child.children())


def _places(network: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Where modules stand; those in several places, whose norms may differ, are left out."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in network.modules():
        for name, child in parent._modules.items():
            if child is not None and type(parent) is not FusedConv:
                found.setdefault(id(child), []).append((parent, name))
    return {key: places[0] for key, places in found.items() if len(places) == 1}


def _fold(chain: list[nn.Module], places: Mapping[int, tuple[nn.Module, str]]) -> None:
    """Fold every convolution of a chain of modules with the norm after it, in place."""
    for conv, norm in zip(chain, chain[1:]):
        with torch.no_grad():
            known = id(conv) in places and id(norm) in places
            if known and is_fixed(norm) and can_fold(conv, norm):
                setattr(*places[id(conv)], FusedConv(cast(nn.Conv2d, conv), norm))
                setattr(*places[id(norm)], nn.Identity().eval())


def _shorten(network: nn.Module) -> None:
    """Put a folded convolution in the place of the sequence that it makes up, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            plain = _is_sequence(child) and not any(has_hooks(m) for m in child.modules())
            kinds = [type(layer) for layer in child.children()] if plain else []
            if kinds[:2] == [FusedConv, nn.Identity] and kinds[2:] in ([], [nn.ReLU]):
                conv = cast(FusedConv, child[0])  # type: ignore[index]
                conv.relu = len(kinds) == 3
                setattr(parent, name, conv)


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, as one convolution where the norm is fixed.

    Gradients with respect to ``x``, and to the weight and bias of ``conv``, are the same.

    Args:
        conv: any convolution; other types than ``nn.Conv2d`` run as they are.
        norm: what follows it.
        x: ``(B, C_in, H, W)``.
    """
    if _unfused or not is_fixed(norm) or not can_fold(conv, norm):
        return norm(conv(x))
    if is_traced(x) or is_traced(conv.weight):
        return norm(conv(x))
    options: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    trains = torch.is_grad_enabled() and conv.weight.requires_grad
    if trains and conv.bias is None and not isinstance(conv.padding, str):
        if not torch.is_autocast_enabled(x.device.type):
            return _ScaledConv.apply(x, conv.weight, *scale_and_shift(conv, norm), options)
    weight, bias = kept_fold(conv, norm, x)
    return F.conv2d(x, weight, bias, *options)


class _ScaledConv(torch.autograd.Function):
    """Convolution with w · scale and a shift, of which autograd keeps w, not the product."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, options) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.options = options
        return F.conv2d(x, _scaled(weight, scale, x), shift.to(x.dtype), *options)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        product = _scaled(weight, scale, x)
        for_x, for_product, _ = torch.ops.aten.convolution_backward(
            grad, x, product, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        for_weight = for_product * scale[:, None, None, None] if mask[1] else None
        return for_x, for_weight, None, None, None


def _scaled(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last)
    product = (weight * scale[:, None, None, None]).to(weight.dtype)
    return product.contiguous(memory_format=torch.channels_last) if last else product


def cut(x: Tensor, start: int, stop: int) -> Tensor:
    """Channels ``start`` to ``stop`` of ``(B, C, H, W)``.

    In inference a part is copied, once for all convolutions that read it.
    """
    part = x[:, start:stop]
    if _unfused or is_traced(x) or torch.is_grad_enabled() or stop - start == x.shape[1]:
        return part
    last = x.is_contiguous(memory_format=torch.channels_last)
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def fast_format(x: Tensor) -> Tensor:
    """``x`` in the memory format in which a CPU convolves fastest: channels last.

    What is traced stays as it is, as do other devices and dtypes.
    """
    if _unfused or is_traced(x) or x.device.type != "cpu" or x.dtype not in _CHANNELS_LAST:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def format_of(like: Tensor, x: Tensor) -> Tensor:
    """``x`` in the memory format of another tensor: contiguous where that is contiguous."""
    return x if is_traced(x) or not like.is_contiguous() else x.contiguous()


@contextmanager
def unfused() -> Iterator[None]:
    """The plain form while the context lasts: module after module, in the image's format.

    For comparisons, and where a difference by rounding matters.
    """
    global _unfused
    _unfused += 1
    try:
        yield
    finally:
        _unfused -= 1


def as_now() -> Callable[[], AbstractContextManager]:
    """A maker of contexts in which operators are fused, or not, as at this call."""
    return partial(_with_unfused, _unfused)


@contextmanager
def _with_unfused(contexts: int) -> Iterator[None]:
    global _unfused
    before, _unfused = _unfused, contexts
    try:
        yield
    finally:
        _unfused = before
