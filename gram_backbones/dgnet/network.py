"""DG-Net: staged networks whose stages are complete graphs with edges weighted for every image.

Paper: "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks", ICLR 2021
submission. The base networks are torchvision's, and their tensors keep torchvision's names; what
DG-Net adds stands under ``graphs``. How a stage is computed: `gram_backbones.dgnet.graph`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..fused import KeepsFused, run_all, sequential_chains
from ..layers import Norm, resolve_norm, stochastic_depth
from ..staged import StagedBackbone, remove_module
from .blocks import block_parts, parts_of
from .dilation import dilate_stages
from .graph import dynamic_graphs, graph_for
from .sums import ValidSizes, stage_sizes
from .variants import VARIANTS, DGNetVariant, Layout


class _DynamicStages(KeepsFused):
    """Some stages of a base network with their graphs, under the base network's names."""

    _starts_as_base: bool | None = None  # see DGNet's argument start_as_base

    def _start(self, start_as_base: bool | None) -> None:
        self._starts_as_base = start_as_base
        if start_as_base:
            self.start_as_base()

    def start_without(self, names: Sequence[str]) -> str:
        """Start near the base network if a file was of it and so had no routers.

        Args:
            names: the tensors that the file lacked.

        Returns:
            What was done, for the log; nothing if ``start_as_base`` is False.
        """
        if self._starts_as_base is False or not any("routers" in name for name in names):
            return ""
        self.start_as_base()
        return (
            "the file is of the base network: routers and thresholds start near it "
            "(start_as_base=False leaves them as they were)"
        )

    def _add_stages(
        self,
        variant: DGNetVariant,
        network: nn.Module,
        indices: Sequence[int],
        norm: Norm,
        with_cp: bool,
        output_stride: int = 32,
        drop_path: float = 0.0,
    ) -> None:
        self.layout = variant.layout
        self.output_stride = output_stride
        dilate_stages(variant.layout, network, output_stride)
        self.graphs = nn.ModuleDict()
        self.block_names: dict[str, list[str]] = {}
        every = [name for stage in variant.layout.stages for name in stage.block_names(network)]
        for index in indices:
            names = variant.layout.stages[index].block_names(network)
            blocks = [network.get_submodule(name) for name in names]
            for name, block in zip(names, blocks):
                _place(self, name, block)
            self.block_names[str(index)] = names
            channels, after, stride = _block_shape(blocks[0])
            project = variant.project_first and index == 0
            if project:
                _widen(cast(nn.Conv2d, blocks[0].conv1), after)
            self.graphs[str(index)] = graph_for(
                blocks,
                channels,
                after,
                stride,
                norm=norm,
                with_cp=with_cp,
                reads_projected=project,
                **variant.graph_options,
            )
            for name, block in zip(names, blocks):
                if drop := stochastic_depth(drop_path, every.index(name), len(every)):
                    block.drop_path = drop

    def run_stage(self, key: str, x: Tensor, valid_sizes: ValidSizes | None) -> Tensor:
        """One stage; ``valid_sizes`` are those of the image, in pixels."""
        if valid_sizes is not None:
            stride = min(self.layout.stages[int(key)].stride, self.output_stride)
            valid_sizes = stage_sizes(valid_sizes, stride)
        return self.graphs[key](x, self.stage_blocks(key), valid_sizes)

    def stage_blocks(self, key: str) -> list[nn.Module]:
        """The blocks of a stage, wherever the base network's names put them."""
        return [self.get_submodule(name) for name in self.block_names[key]]

    def conv_chains(self) -> Iterator[list[nn.Module]]:
        """See :func:`gram_backbones.fused.deploy`."""
        yield from getattr(super(), "conv_chains", partial(sequential_chains, self))()
        for key in self.graphs:
            for block in self.stage_blocks(key):
                yield list(parts_of(block).layers)

    def start_as_base(
        self, threshold: float = 0.0, chain_bias: float = 9.0, side_bias: float = -9.0
    ) -> None:
        """Set τ and router biases so that the network starts near its base network and can learn.

        Biases trade exactness against gradient; docs/dgnet.md has the measured curve. With the
        defaults, features of a random DG-ResNet-50 deviate by 0.1 % (res2) to 1.7 % (res5) from
        the base network's and its logits by 0.4 %, and no |dψ/dz| is below 2.7e-5.

        Args:
            threshold: τ of every node.
            chain_bias: router bias of the edges from a node to the next.
            side_bias: router bias of all other edges.
        """
        for graph in dynamic_graphs(self).values():
            graph.open_chain(threshold, chain_bias, side_bias)


def _block_shape(block: nn.Module) -> tuple[int, int, int]:
    """Input channels, output channels and stride of a block, from its convolutions in order."""
    parts = block_parts(block)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if parts.projection is not None:
        shortcut = {id(m) for m in parts.projection.modules()}
        convs = [m for m in convs if id(m) not in shortcut]
    # Squeeze-and-excitation works on pooled 1 × 1 maps inside the branch.
    inside = {
        id(conv)
        for m in block.modules()
        if type(m).__name__ == "SqueezeExcitation"
        for conv in m.modules()
    }
    convs = [m for m in convs if id(m) not in inside]
    stride = 1
    for conv in convs:
        stride *= conv.stride[0]
    return convs[0].in_channels, convs[-1].out_channels, stride


def _widen(conv: nn.Conv2d, in_channels: int) -> None:
    """Give a convolution another number of input channels and a new start, in place."""
    if in_channels != conv.in_channels:
        conv.in_channels = in_channels
        conv.weight = nn.Parameter(
            conv.weight.new_empty(conv.out_channels, in_channels, *conv.kernel_size)
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path, with plain containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Sequential())
        root = getattr(root, parent)
    root.add_module(name, module)


class DGNet(_DynamicStages, StagedBackbone):
    """DG-Net as a feature extractor or a classifier (Table 1).

    Features, classifier and freezing work as in :class:`gram_backbones.AOGNet`. A frozen stage
    freezes its routers and thresholds too.

    Args:
        variant: name of a row of ``VARIANTS``, or a record of one's own.
        out_features, out_indices: as in :class:`gram_backbones.AOGNet`.
        num_classes: None for feature maps, 0 for pooled features, otherwise size of the classifier.
        norm: ``"BN"``, ``"SyncBN"``, ``"FrozenBN"``, ``"GN"``, or a factory ``channels -> module``.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.
        with_cp: recompute the activations inside each block in the backward pass to save memory.
        start_as_base: whether to start near the base network, see :meth:`start_as_base`. None: once
            weights of the base network are loaded; True: at once; False: never.
        drop_path: stochastic depth of the last block, in training; the rate rises linearly from 0
            at the first block. Blocks without a shortcut are never dropped.
        output_stride: 8 or 16 keep the resolution from that stride on: convolutions of later stages
            are dilated instead. At 32 all stages halve it.
        changes: fields of the variant to change: ``edges``, ``router_bias``, ``side_bias``,
            ``gate``, ``block_shortcut``, ``wiring_seed``, ``project_first``.

    Raises:
        ValueError: an unknown variant or feature, a ``frozen_stages`` or ``output_stride`` out of
            range, or ``start_as_base`` with edges that have no routers.

    Examples:
        >>> images = torch.randn(2, 3, 64, 64)
        >>> for name, x in DGNet("dgnet_r18")(images).items():
        ...     print(name, tuple(x.shape))
        res2 (2, 64, 16, 16)
        res3 (2, 128, 8, 8)
        res4 (2, 256, 4, 4)
        res5 (2, 512, 2, 2)
        >>> model = DGNet("dgnet_r18", num_classes=10, edges="static", norm="GN")
        >>> model(images).shape
        torch.Size([2, 10])
    """

    VARIANTS = VARIANTS
    PAPER = "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks"

    @classmethod
    def argument_names(cls) -> set[str]:
        """Those of the signature, and the fields of the variant that it changes."""
        return super().argument_names() | {field.name for field in fields(DGNetVariant)}

    def __init__(
        self,
        variant: str | DGNetVariant = "dgnet_r50",
        *,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        num_classes: int | None = None,
        norm: Norm = "BN",
        frozen_stages: int = -1,
        with_cp: bool = False,
        start_as_base: bool | None = None,
        drop_path: float = 0.0,
        output_stride: int = 32,
        **changes: Any,
    ):
        super().__init__()
        variant = self.find_variant(variant, **changes)
        layout = variant.layout
        network = variant.base(norm_layer=resolve_norm(norm))
        channels, strides = _feature_shapes(layout, network)
        self._plan_features(
            variant, channels, strides, out_features, num_classes, output_stride, out_indices
        )
        for path in layout.stem:
            _place(self, path, network.get_submodule(path))
        built = ("stem", *self.stage_names)
        indices = [i for i, stage in enumerate(layout.stages) if stage.feature in built]
        self._add_stages(variant, network, indices, norm, with_cp, output_stride, drop_path)
        for path in self.before_pooling:
            _place(self, path, network.get_submodule(path))
        if num_classes:
            _place(self, layout.head, _resized(network.get_submodule(layout.head), num_classes))
        self._start(start_as_base)
        self.freeze_stages(frozen_stages)

    def _stage_keys(self, name: str) -> list[str]:
        return [key for key in self.graphs if self.layout.stages[int(key)].feature == name]

    def feature_modules(self, name: str) -> list[nn.Module]:
        """All modules that compute a feature from the previous one, graphs included."""
        paths = list(self.layout.stem) if name == "stem" else []
        modules = [self.get_submodule(path) for path in paths]
        for key in self._stage_keys(name):
            modules += [*self.stage_blocks(key), self.graphs[key]]
        return modules

    def feature_path(self, name: str) -> str:
        """Path of the module that returns a feature: a stage's graph."""
        keys = self._stage_keys(name)
        return f"graphs.{keys[-1]}" if keys else self.layout.stem[-1]

    def remove_feature(self, name: str) -> None:
        """Delete the modules of the last feature's stages."""
        for key in self._stage_keys(name):
            del self.graphs[key]
            for path in self.block_names.pop(key):
                remove_module(self, path)

    def run_feature(self, name: str, x: Tensor, valid_sizes: ValidSizes | None = None) -> Tensor:
        """Compute a feature from the previous one; ``valid_sizes`` as in :meth:`forward`."""
        if name == "stem":
            x = run_all(map(self.get_submodule, self.layout.stem), x)
        for key in self._stage_keys(name):
            x = self.run_stage(key, x, valid_sizes)
        return x

    def forward(
        self, x: Tensor, valid_sizes: ValidSizes | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """Feature maps by name, or a tuple of them for ``out_indices``; pooled features; logits.

        Args:
            x: images ``(B, 3, H, W)``.
            valid_sizes: per image, height and width of its unpadded part in pixels; routers pool
                only that. None: all of it.
        """
        if isinstance(valid_sizes, torch.fx.Proxy):
            # Symbolic tracing makes an input of every argument; it takes images alone.
            valid_sizes = None
        return self.give(self.forward_features(x, valid_sizes=valid_sizes))


DGNetVariant.network = DGNet


class DGStage(_DynamicStages):
    """The last feature's stages of a DG-Net, as a C4 detector applies them to every region.

    Args:
        variant, norm, with_cp, start_as_base, changes: as in :class:`DGNet`.
        feature: which feature's stages.

    Examples:
        >>> DGStage("dgnet_r18")(torch.randn(5, 256, 14, 14)).shape
        torch.Size([5, 512, 7, 7])
    """

    def __init__(
        self,
        variant: str | DGNetVariant,
        feature: str = "res5",
        *,
        norm: Norm = "BN",
        with_cp: bool = False,
        start_as_base: bool | None = None,
        **changes,
    ):
        super().__init__()
        variant = self.variant = DGNet.find_variant(variant, **changes)
        network = variant.base(norm_layer=resolve_norm(norm))
        channels, _ = _feature_shapes(variant.layout, network)
        if feature not in channels or feature == "stem":
            raise ValueError(f"feature is {feature!r}; allowed are {tuple(channels)[1:]}")
        names = list(channels)
        self.place = variant.place_of(feature)
        self.in_channels = channels[names[names.index(feature) - 1]]
        self.out_channels = channels[feature]
        indices = [i for i, s in enumerate(variant.layout.stages) if s.feature == feature]
        self._add_stages(variant, network, indices, norm, with_cp)
        self._start(start_as_base)

    def forward(self, x: Tensor) -> Tensor:
        """Map regions ``(R, C_in, H, W)`` to ``(R, C_out, H / 2, W / 2)``; R may be 0."""
        for key in self.graphs:
            x = self.run_stage(key, x, None)
        return x


def _feature_shapes(layout: Layout, network: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Channels and strides of ``stem`` and of every feature, shallow to deep."""
    stem = [network.get_submodule(path) for path in layout.stem]
    convs = [m for module in stem for m in module.modules() if isinstance(m, nn.Conv2d)]
    channels, strides = {"stem": convs[-1].out_channels}, {"stem": layout.stem_stride}
    for stage in layout.stages:
        last = network.get_submodule(stage.block_names(network)[-1])
        channels[stage.feature] = _block_shape(last)[1]
        strides[stage.feature] = stage.stride
    return channels, strides


def _resized(head: nn.Module, num_classes: int) -> nn.Module:
    """The classifier with another number of outputs, with fresh weights where that changes."""
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    linear = layers[-1]
    assert isinstance(linear, nn.Linear)  # in all base networks
    if linear.out_features == num_classes:
        return head
    fresh = nn.Linear(linear.in_features, num_classes)
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    return nn.Sequential(*layers[:-1], fresh) if isinstance(head, nn.Sequential) else fresh
