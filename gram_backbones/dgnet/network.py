"""DG-Net: staged networks whose stages are complete graphs with edges weighted for every image.

Paper: "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks", ICLR 2021
submission. The base networks are torchvision's, and their tensors keep torchvision's names; what
DG-Net adds stands under ``graphs``. How a stage is computed: `gram_backbones.dgnet.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.regnet import BlockParams, RegNet

from ..layers import Norm, resolve_norm
from ..preprocessing import CIFAR_RGB, IMAGENET_RGB, Preprocessing
from ..registry import register_models
from ..staged import StagedBackbone, pick_variant
from .blocks import block_parts
from .cifar_resnet import CifarResNet
from .graph import graph_for
from .sums import ValidSizes, stage_sizes


@dataclass(frozen=True)
class StageSlice:
    """Where a stage's blocks stand in the base network.

    Attributes:
        feature: the feature that the stage belongs to; several stages may belong to one.
        container: path of the module whose children are the blocks.
        start, stop: which of its children.
        stride: total stride of the stage's output.
    """

    feature: str
    container: str
    stride: int
    start: int = 0
    stop: int | None = None

    def block_names(self, network: nn.Module) -> list[str]:
        """Paths of the blocks in the network."""
        children = [name for name, _ in network.get_submodule(self.container).named_children()]
        return [f"{self.container}.{name}" for name in children[self.start : self.stop]]


@dataclass(frozen=True)
class Layout:
    """How a base network is cut into stem, stages and head, by the paths of its modules."""

    stem: tuple[str, ...]
    stem_stride: int
    stages: tuple[StageSlice, ...]
    before_pooling: tuple[str, ...]
    classifier: str


RESNET = Layout(
    stem=("conv1", "bn1", "relu", "maxpool"),
    stem_stride=4,
    stages=tuple(StageSlice(f"res{i + 1}", f"layer{i}", 2 ** (i + 1)) for i in (1, 2, 3, 4)),
    before_pooling=(),
    classifier="fc",
)
CIFAR_RESNET = Layout(
    stem=("conv1", "bn1", "relu"),
    stem_stride=1,
    stages=tuple(StageSlice(f"res{i + 1}", f"layer{i}", 2 ** (i - 1)) for i in (1, 2, 3)),
    before_pooling=(),
    classifier="fc",
)
REGNET = Layout(
    stem=("stem",),
    stem_stride=2,
    stages=tuple(
        StageSlice(f"res{i + 1}", f"trunk_output.block{i}", 2 ** (i + 1)) for i in (1, 2, 3, 4)
    ),
    before_pooling=(),
    classifier="fc",
)
# The 16-channel stage counts to the stem; 64 and 96 channels are one feature, so are 160 and 320.
MOBILENET_V2 = Layout(
    stem=("features.0",),
    stem_stride=2,
    stages=(
        StageSlice("stem", "features", 2, 1, 2),
        StageSlice("res2", "features", 4, 2, 4),
        StageSlice("res3", "features", 8, 4, 7),
        StageSlice("res4", "features", 16, 7, 11),
        StageSlice("res4", "features", 16, 11, 14),
        StageSlice("res5", "features", 32, 14, 17),
        StageSlice("res5", "features", 32, 17, 18),
    ),
    before_pooling=("features.18",),
    classifier="classifier",
)


def _regnet(norm_layer: Callable[[int], nn.Module], **parameters: Any) -> RegNet:
    with torch.device("cpu"):  # it computes widths with tensors, also where weights are on meta
        params = BlockParams.from_init_params(**parameters)
    return RegNet(params, norm_layer=norm_layer)


@dataclass(frozen=True)
class DGNetVariant:
    """One row of the table of variants.

    Attributes:
        base: builds the base network from ``norm_layer``.
        layout: how it is cut into stages.
        edges, router_bias, side_bias, gate, block_shortcut, wiring_seed: see
            :class:`gram_backbones.dgnet.graph.DynamicGraph`.
        preprocessing: of the images that the variant is trained on.
    """

    base: Callable[..., nn.Module]
    layout: Layout
    edges: str = "dynamic"
    router_bias: float = 3.0
    side_bias: float = -3.0
    gate: str = "straight_through"
    block_shortcut: bool = True
    wiring_seed: int = 0
    preprocessing: Preprocessing = field(default=IMAGENET_RGB)


_X600M = dict(depth=16, w_0=48, w_a=36.97, w_m=2.24, group_width=24)
_X1600M = dict(depth=18, w_0=80, w_a=34.01, w_m=2.25, group_width=24)
_Y600M = dict(depth=15, w_0=48, w_a=32.54, w_m=2.32, group_width=16, se_ratio=0.25)
VARIANTS = {
    "dgnet_r18": DGNetVariant(models.resnet18, RESNET),
    "dgnet_r34": DGNetVariant(models.resnet34, RESNET),
    "dgnet_r50": DGNetVariant(models.resnet50, RESNET),
    "dgnet_r101": DGNetVariant(models.resnet101, RESNET),
    "dgnet_x50": DGNetVariant(models.resnext50_32x4d, RESNET),
    "dgnet_mobilenet_v2": DGNetVariant(models.mobilenet_v2, MOBILENET_V2),
    "dgnet_regnetx_600m": DGNetVariant(partial(_regnet, **_X600M), REGNET),
    "dgnet_regnetx_1600m": DGNetVariant(partial(_regnet, **_X1600M), REGNET),
    "dgnet_regnety_600m": DGNetVariant(partial(_regnet, **_Y600M), REGNET),
    "dgnet_cifar_r20": DGNetVariant(partial(CifarResNet, 3), CIFAR_RESNET, preprocessing=CIFAR_RGB),
}


def get_variant(variant: str | DGNetVariant, **changes) -> DGNetVariant:
    """A variant by name or record, see :func:`gram_backbones.staged.pick_variant`."""
    return pick_variant(VARIANTS, variant, **changes)


class _DynamicStages(nn.Module):
    """Some stages of a base network with their graphs, under the base network's names."""

    def _add_stages(
        self,
        variant: DGNetVariant,
        network: nn.Module,
        indices: Sequence[int],
        norm: Norm,
        with_cp: bool,
    ) -> None:
        self.layout = variant.layout
        self.graphs = nn.ModuleDict()
        self.block_names: dict[str, list[str]] = {}
        for index in indices:
            names = variant.layout.stages[index].block_names(network)
            blocks = [network.get_submodule(name) for name in names]
            for name, block in zip(names, blocks):
                _place(self, name, block)
            self.block_names[str(index)] = names
            channels, after, stride = _block_shape(blocks[0])
            self.graphs[str(index)] = graph_for(
                blocks,
                channels,
                after,
                stride,
                norm=norm,
                edges=variant.edges,
                router_bias=variant.router_bias,
                side_bias=variant.side_bias,
                gate=variant.gate,
                block_shortcut=variant.block_shortcut,
                wiring_seed=variant.wiring_seed,
                with_cp=with_cp,
            )

    def run_stage(self, key: str, x: Tensor, valid_sizes: ValidSizes | None) -> Tensor:
        """One stage; ``valid_sizes`` are those of the image, in pixels."""
        if valid_sizes is not None:
            valid_sizes = stage_sizes(valid_sizes, self.layout.stages[int(key)].stride)
        blocks = [self.get_submodule(name) for name in self.block_names[key]]
        return self.graphs[key](x, blocks, valid_sizes)

    def start_as_base(
        self, threshold: float = 0.0, chain_bias: float = 7.0, side_bias: float = -7.0
    ) -> None:
        """Set τ and router biases so that the network starts near its base network and can learn.

        The trade is between exactness and gradient; docs/dgnet.md has the measured curve. At the
        defaults features of a random DG-ResNet-50 deviate by 0.4 % (res2) to 11.3 % (res5) from the
        base network's, and no |dψ/dz| is below 2e-4.

        Args:
            threshold: τ of every node.
            chain_bias: router bias of the edges from a node to the next.
            side_bias: router bias of all other edges.
        """
        for graph in self.graphs.values():
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


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path, with plain containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Sequential())
        root = getattr(root, parent)
    root.add_module(name, module)


class DGNet(StagedBackbone, _DynamicStages):
    """DG-Net as a feature extractor or a classifier (Table 1).

    Features, classifier and freezing are those of :class:`gram_backbones.AOGNet`. A frozen stage
    freezes its routers and thresholds too.

    Args:
        variant: name of a row of ``VARIANTS``, or a record of one's own.
        out_features: names out of ``stem``, ``res2`` … ``res5``, or indices of stages.
        num_classes: None for feature maps, 0 for pooled features, otherwise size of the classifier.
        norm: ``"BN"``, ``"SyncBN"``, ``"FrozenBN"``, ``"GN"``, or a factory ``channels -> module``.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.
        with_cp: recompute the activations inside each block in the backward pass to save memory.
        changes: fields of the variant to change: ``edges``, ``router_bias``, ``side_bias``,
            ``gate``, ``block_shortcut``, ``wiring_seed``.

    Raises:
        ValueError: an unknown variant or feature, or a ``frozen_stages`` out of range.
    """

    def __init__(
        self,
        variant: str | DGNetVariant = "dgnet_r50",
        *,
        out_features: Sequence[str | int] | None = None,
        num_classes: int | None = None,
        norm: Norm = "BN",
        frozen_stages: int = -1,
        with_cp: bool = False,
        **changes,
    ):
        super().__init__()
        self.variant = get_variant(variant, **changes)
        layout = self.variant.layout
        network = self.variant.base(norm_layer=resolve_norm(norm))
        channels, strides = _feature_shapes(layout, network)
        self._plan_features(channels, strides, out_features, num_classes, frozen_stages)
        for path in layout.stem:
            _place(self, path, network.get_submodule(path))
        built = ("stem", *self.stage_names)
        indices = [i for i, stage in enumerate(layout.stages) if stage.feature in built]
        self._add_stages(self.variant, network, indices, norm, with_cp)
        if num_classes is not None:
            for path in layout.before_pooling:
                _place(self, path, network.get_submodule(path))
        if num_classes:
            head = network.get_submodule(layout.classifier)
            self.add_module(layout.classifier, _resized(head, num_classes))
        self.train()

    def _stage_keys(self, name: str) -> list[str]:
        return [key for key in self.graphs if self.layout.stages[int(key)].feature == name]

    def feature_modules(self, name: str) -> list[nn.Module]:
        """All modules that compute one feature from the one before, graphs included."""
        paths = list(self.layout.stem) if name == "stem" else []
        modules = [self.get_submodule(path) for path in paths]
        for key in self._stage_keys(name):
            modules += [self.get_submodule(path) for path in self.block_names[key]]
            modules.append(self.graphs[key])
        return modules

    def forward_features(
        self, x: Tensor, valid_sizes: ValidSizes | None = None
    ) -> dict[str, Tensor]:
        """Feature maps by name; those in ``out_features``, or the last one of a classifier.

        Args:
            x: images ``(B, 3, H, W)``.
            valid_sizes: per image, height and width of its unpadded part in pixels; routers pool
                only that. None: all of it.
        """
        if isinstance(valid_sizes, torch.fx.Proxy):
            # Symbolic tracing makes an input of every argument; it takes images alone.
            valid_sizes = None
        wanted = self.wanted_features()
        features = {}
        for path in self.layout.stem:
            x = self.get_submodule(path)(x)
        for name in ("stem", *self.stage_names):
            for key in self._stage_keys(name):
                x = self.run_stage(key, x, valid_sizes)
            if name in wanted:
                features[name] = x
        return features

    def forward(
        self, x: Tensor, valid_sizes: ValidSizes | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """See :meth:`forward_features`: feature maps, pooled features or logits."""
        features = self.forward_features(x, valid_sizes)
        if self.num_classes is None:
            return self.pack_features(features)
        x = features[self.stage_names[-1]]
        for path in self.layout.before_pooling:
            x = self.get_submodule(path)(x)
        x = x.mean((2, 3))
        return self.get_submodule(self.layout.classifier)(x) if self.num_classes else x

    def load_base(self, state: Mapping[str, Tensor]) -> None:
        """Load a torchvision checkpoint of the base network; routers keep their values.

        Raises:
            ValueError: a tensor of the base network is missing or has another shape; the message
                lists the names, and the network is left as it was.
        """
        own = self.state_dict()
        wanted = [name for name in own if not name.startswith("graphs.")]
        bad = [n for n in wanted if n not in state or state[n].shape != own[n].shape]
        bad = [n for n in bad if not n.endswith("num_batches_tracked")]
        if bad:
            raise ValueError(
                f"the checkpoint fills {len(wanted) - len(bad)} of {len(wanted)} tensors of the "
                f"base network; missing or of another shape: {', '.join(bad[:8])}"
            )
        self.load_state_dict({n: state[n] for n in wanted if n in state}, strict=False)


class DGStage(_DynamicStages):
    """The last feature's stages of a DG-Net, as a C4 detector applies them to every region.

    Args:
        variant, norm, with_cp, changes: as in :class:`DGNet`.
        feature: which feature's stages.
    """

    def __init__(
        self,
        variant: str | DGNetVariant,
        feature: str = "res5",
        *,
        norm: Norm = "BN",
        with_cp: bool = False,
        **changes,
    ):
        super().__init__()
        variant = self.variant = get_variant(variant, **changes)
        network = variant.base(norm_layer=resolve_norm(norm))
        channels, _ = _feature_shapes(variant.layout, network)
        if feature not in channels or feature == "stem":
            raise ValueError(f"feature is {feature!r}; allowed are {tuple(channels)[1:]}")
        names = list(channels)
        self.in_channels = channels[names[names.index(feature) - 1]]
        self.out_channels = channels[feature]
        indices = [i for i, s in enumerate(variant.layout.stages) if s.feature == feature]
        self._add_stages(variant, network, indices, norm, with_cp)

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
    linear = head if isinstance(head, nn.Linear) else head[-1]
    if linear.out_features == num_classes:
        return head
    fresh = nn.Linear(linear.in_features, num_classes)
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    return fresh if isinstance(head, nn.Linear) else nn.Sequential(*head[:-1], fresh)


def _create(name: str, **kwargs) -> DGNet:
    return DGNet(name, **kwargs)


register_models(VARIANTS, _create)
