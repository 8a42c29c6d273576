"""What networks cost: parameters, FLOPs, activations and the memory of a training step, by parts.

Networks are counted on the ``meta`` device, where tensors have shapes and no values: large images
take no memory, and a second or two of time. Only what depends on the image, the closed edges of a
DG-Net, is counted on real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..aognet import AOGBlock, AOGStage
from ..data import read_picture
from ..dgnet.connectivity import dynamic_stages, summarise
from ..dgnet.graph import record_connectivity, training_gate
from ..flops import count_conv_flops
from ..preprocessing import Preprocessing
from ..registry import build_model
from ..staged import StagedBackbone

# Parts of a network by name: the modules that compute each.
Parts = Mapping[str, Sequence[nn.Module]]
_BATCH = 2  # images of the training step that is counted: batch norm refuses one pixel of one image


@dataclass
class Cost:
    """What a network, or a part of it, costs for one image.

    Attributes:
        parameters: scalars in all parameters.
        trainable: scalars in those that are not frozen.
        conv_flops: multiply-adds of the convolutions, which papers print as FLOPs.
        flops: multiply-adds of convolutions, linear layers and other matrix products.
        activations: elements that these put out, as in "Designing Network Design Spaces".
        saved: bytes that autograd keeps for the backward pass, each storage once.

    Examples:
        >>> Cost(parameters=10, trainable=10, saved=100).training_bytes(batch=2)
        320
    """

    parameters: int = 0
    trainable: int = 0
    conv_flops: int = 0
    flops: int = 0
    activations: int = 0
    saved: float = 0.0

    def training_bytes(self, batch: int = 1) -> float:
        """Memory of a training step in float32 with SGD and momentum.

        Parameters, and for the trainable ones gradients and momentum, take 4 bytes a scalar each;
        then come the activations that the backward pass reads. What operators and the backward pass
        need for a moment, and the buffers of libraries, are not counted.
        """
        return 4 * self.parameters + 8 * self.trainable + batch * self.saved


def stages(model: StagedBackbone) -> dict[str, list[nn.Module]]:
    """The modules of the stem, of every stage, and of a classifier's head.

    Examples:
        >>> from gram_backbones import create_model
        >>> [*stages(create_model("dgnet_r18"))]
        ['stem', 'res2', 'res3', 'res4', 'res5', 'head']
    """
    parts = {name: model.feature_modules(name) for name in ("stem", *model.stage_names)}
    head = [*model.before_pooling, *([model.variant.head] if model.num_classes else [])]
    if head:
        parts["head"] = [model.get_submodule(path) for path in head]
    return parts


def nodes(model: StagedBackbone) -> dict[str, list[nn.Module]]:
    """The modules of every node, by their paths: of a grammar's nodes, of DG-Net's blocks.

    What lies between the nodes, such as transitions and the graphs with their routers, is listed
    too.

    Examples:
        >>> from gram_backbones import create_model
        >>> [*nodes(create_model("aognet_4m"))][1:3]
        ['res2.blocks.0.ops.0 (OR 0–1)', 'res2.blocks.0.ops.1 (T 0–1)']
        >>> [*nodes(create_model("dgnet_r18"))][4:7]
        ['layer1.0', 'layer1.1', 'graphs.0']
    """
    paths = {module: path for path, module in model.named_modules()}
    found = {}
    for modules in stages(model).values():
        for module in modules:
            if not isinstance(module, AOGStage):
                found[paths[module]] = [module]
                continue
            if module.transition is not None:
                found[paths[module.transition]] = [module.transition]
            for block in module.blocks:
                assert isinstance(block, AOGBlock)
                for node in block.graph.nodes:
                    op = block.ops[node.id]
                    first, last = node.span
                    found[f"{paths[op]} ({node.type.value} {first}–{last})"] = [op]
                found[paths[block]] = [block]  # what is left: the last norm
    return found


# What may be a row of its own.
PARTS = {"stage": stages, "node": nodes}


def build_on_meta(name: str) -> StagedBackbone:
    """A classifier without values: of ImageNet's 1000 classes, or CIFAR's 10.

    Raises:
        ValueError: unknown name.

    Examples:
        >>> build_on_meta("aognet_4m").fc.weight.device.type
        'meta'
    """
    with torch.device("meta"):
        return build_model(name, num_classes=num_classes(name))


def num_classes(name: str) -> int:
    """Number of classes that a model is counted with: 10 for CIFAR's, otherwise 1000.

    Examples:
        >>> num_classes("dgnet_cifar_r20"), num_classes("dgnet_r50")
        (10, 1000)
    """
    return 10 if "cifar" in name else 1000


def measure(
    network: nn.Module, size: tuple[int, int], parts: Parts | None = None
) -> tuple[Cost, dict[str, Cost]]:
    """Count a network that was built on the ``meta`` device, and its parts.

    Args:
        network: takes images ``(B, 3, H, W)``. It is counted in evaluation mode and, for
            :attr:`Cost.saved`, in training mode; frozen parts save what they must.
        size: height and width of the images in pixels.
        parts: what is inside several parts counts for the innermost, and a parameter for the first.

    Returns:
        The cost of the network, and of every part.

    Raises:
        ValueError: the network is not on the ``meta`` device, or cannot take images of this size.

    Examples:
        >>> with torch.device("meta"):
        ...     network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
        >>> whole, by_part = measure(network, (32, 32), {"first": [network[0]]})
        >>> whole.conv_flops == 32 * 32 * (8 * 3 * 9 + 8 * 8)
        True
        >>> by_part["first"].parameters, by_part["first"].activations
        (224, 8192)
    """
    off = {p.device.type for p in network.parameters()} - {"meta"}
    if off:
        raise ValueError(f"the network is on {sorted(off)}; build it under torch.device('meta')")
    was_training = network.training
    with ExitStack() as stack:
        ledger = _Ledger(parts or {})
        ledger.count_parameters(network)
        stack.callback(network.train, was_training)
        stack.enter_context(ledger.watching())
        images = torch.zeros(_BATCH, 3, *size, device="meta")
        try:
            with torch.no_grad(), _Counter(ledger):
                network.eval()(images[:1])
            with ledger.saving(network):
                network.train()(images)
        except RuntimeError as error:
            raise ValueError(f"images of {size[0]}×{size[1]} pixels do not fit: {error}") from error
    return ledger.whole, ledger.costs


@dataclass
class _Ledger:
    """The books: every entry goes to the whole network, and to the innermost part at work."""

    parts: Parts
    whole: Cost = field(default_factory=Cost)
    at_work: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.costs = {name: Cost() for name in self.parts}

    def add(self, **amounts: float) -> None:
        for cost in (self.whole, *(self.costs[name] for name in self.at_work[-1:])):
            for name, amount in amounts.items():
                setattr(cost, name, getattr(cost, name) + amount)

    def count_parameters(self, network: nn.Module) -> None:
        left = {*network.parameters()}
        for name, modules in (*self.parts.items(), (None, [network])):
            self.at_work = [] if name is None else [name]
            for parameter in {p for m in modules for p in m.parameters()} & left:
                left.remove(parameter)
                count = parameter.numel()
                self.add(parameters=count, trainable=count if parameter.requires_grad else 0)
        self.at_work = []

    def watching(self) -> ExitStack:
        """A context in which hooks say which parts are at work."""
        with ExitStack() as stack:
            for name, modules in self.parts.items():
                for module in modules:
                    stack.callback(module.register_forward_pre_hook(self._begin(name)).remove)
                    stack.callback(module.register_forward_hook(self._end).remove)
            return stack.pop_all()

    def _begin(self, name: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            self.at_work.append(name)

        return begin

    def _end(self, *_: Any) -> None:
        self.at_work.pop()

    def saving(self, network: nn.Module) -> saved_tensors_hooks:
        """A context in which tensors count that autograd keeps, each storage once."""
        own = [*network.parameters(), *network.buffers()]
        # Storages are held here: a freed one's address could come again.
        seen = {t.untyped_storage()._cdata: t.untyped_storage() for t in own}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen[storage._cdata] = storage
                self.add(saved=storage.nbytes() / _BATCH)
            return tensor

        return saved_tensors_hooks(pack, lambda tensor: tensor)


class _Counter(TorchDispatchMode):
    """Books what torch's own formulas count: convolutions, linear layers, matrix products."""

    def __init__(self, ledger: _Ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            # torch counts a multiply-add as two operations.
            flops = flop_registry[packet](*args, **kwargs, out_val=out) // 2
            conv = flops if packet is torch.ops.aten.convolution else 0
            self.ledger.add(flops=flops, conv_flops=conv, activations=out.numel())
        return out


def fvcore_flops(network: nn.Module, size: tuple[int, int]) -> int:
    """What fvcore counts for an image of zeros: also norms, pooling and interpolation.

    The network is traced, so it computes; every edge of a DG-Net counts.

    Args:
        network: on a device with values.
        size: height and width in pixels.

    Raises:
        ImportError: fvcore, which comes with Detectron2, is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise ImportError(
            "--fvcore needs fvcore, which comes with Detectron2: pip install fvcore"
        ) from error
    place = next(network.parameters())
    analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, 3, *size).to(place))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return int(analysis.total())


def open_image(path: str | Path, preprocessing: Preprocessing, size: tuple[int, int]) -> Tensor:
    """An image as classifiers see it: scaled and cropped at the centre, ``(3, H, W)``, normalised.

    Args:
        path: of the image.
        preprocessing: of the network's variant, in RGB.
        size: height and width in pixels. Above 32 pixels, the crop is 7/8 of the scaled image.

    Raises:
        PictureError: the file cannot be read; the message names its path.
    """
    height, width = size
    scale = 8 / 7 if min(size) > 32 else 1.0
    image = Image.fromarray(read_picture(path))
    pixels = ImageOps.fit(image, (round(width * scale), round(height * scale)))
    left, top = (pixels.width - width) // 2, (pixels.height - height) // 2
    pixels = pixels.crop((left, top, left + width, top + height))
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (tensor - mean) / std


@dataclass(frozen=True)
class Skipped:
    """What a DG-Net computes for given images.

    Attributes:
        every_edge: multiply-adds of its convolutions with every edge open.
        flops: those that were computed, by image.
        closed_edges, closed_blocks: shares over all images.
    """

    every_edge: int
    flops: tuple[int, ...]
    closed_edges: float
    closed_blocks: float

    @property
    def mean(self) -> float:
        """Expected multiply-adds of an image."""
        return sum(self.flops) / len(self.flops)


def flops_over_images(network: nn.Module, images: Iterable[Tensor]) -> Skipped:
    """Expected FLOPs of a DG-Net: closed edges, and blocks that no open edge feeds, do not count.

    Args:
        network: contains dynamic stages; on any device with values.
        images: normalised, ``(3, H, W)`` each, all of one size; one is held at a time.

    Raises:
        ValueError: no edge of the network depends on the image, or there are no images.

    Examples:
        >>> from gram_backbones import DGNet
        >>> found = flops_over_images(DGNet("dgnet_r18"), torch.randn(2, 3, 64, 64))
        >>> found.mean == found.every_edge, found.closed_blocks  # its edges start open
        (True, 0.0)
    """
    names = dynamic_stages(network)
    if not names:
        raise ValueError("no edge of the network depends on the image")
    images = iter(images)
    first = next(images, None)
    if first is None:
        raise ValueError("there are no images")
    with training_gate(network):
        every_edge = count_conv_flops(network, first[None])
    with record_connectivity(network) as records:
        flops = [count_conv_flops(network, image[None]) for image in chain([first], images)]
    shares = summarise({name: records[name] for name in names})
    return Skipped(every_edge, tuple(flops), shares["closed_edges"], shares["closed_blocks"])
