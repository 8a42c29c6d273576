"""The table of DG-Nets: base networks of torchvision, and how each is cut into stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams, RegNet

from ..preprocessing import CIFAR_RGB, IMAGENET_RGB, Preprocessing
from ..staged import Variant
from .cifar_resnet import CifarResNet
from .names import NAMINGS


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
    """How a base network is cut into stem, stages and head, by the paths of its modules.

    Attributes:
        stem, first_conv, before_pooling, head, classifier: see
            :class:`gram_backbones.staged.Variant`.
        stem_stride: total stride of the stem.
        stages: in order.
        kind: of base network, a key of :data:`gram_backbones.dgnet.names.NAMINGS`.
        recipes: see :class:`gram_backbones.staged.Variant`.
    """

    stem: tuple[str, ...]
    stem_stride: int
    stages: tuple[StageSlice, ...]
    first_conv: str = "conv1"
    before_pooling: tuple[str, ...] = ()
    head: str = "fc"
    classifier: str = "fc"
    kind: str = "resnet"
    recipes: tuple[tuple[str, str], ...] = (("folder", "dgnet_resnet"),)


RESNET = Layout(
    stem=("conv1", "bn1", "relu", "maxpool"),
    stem_stride=4,
    stages=tuple(StageSlice(f"res{i + 1}", f"layer{i}", 2 ** (i + 1)) for i in (1, 2, 3, 4)),
)
CIFAR_RESNET = Layout(
    stem=("conv1", "bn1", "relu"),
    stem_stride=1,
    stages=tuple(StageSlice(f"res{i + 1}", f"layer{i}", 2 ** (i - 1)) for i in (1, 2, 3)),
    recipes=(("*", "cifar_small"),),
)
REGNET = Layout(
    stem=("stem",),
    stem_stride=2,
    stages=tuple(
        StageSlice(f"res{i + 1}", f"trunk_output.block{i}", 2 ** (i + 1)) for i in (1, 2, 3, 4)
    ),
    first_conv="stem.0",
    kind="regnet",
    recipes=(("folder", "dgnet_regnet"),),
)
# The 16-channel stage belongs to the stem; 64 and 96 channels are one feature, so are 160 and 320.
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
    first_conv="features.0.0",
    before_pooling=("features.18",),
    head="classifier",
    classifier="classifier.1",
    kind="mobilenet_v2",
    recipes=(("folder", "dgnet_mobilenet_v2"),),
)


def _regnet(norm_layer: Callable[[int], nn.Module], **parameters: Any) -> RegNet:
    with torch.device("cpu"):  # it computes widths with tensors, also where weights are on meta
        params = BlockParams.from_init_params(**parameters)
    return RegNet(params, norm_layer=norm_layer)


# Fields of a variant that every stage's graph takes.
GRAPH_OPTIONS = ("edges", "router_bias", "side_bias", "gate", "block_shortcut", "wiring_seed")


@dataclass(frozen=True)
class DGNetVariant(Variant):
    """One row of the table of variants.

    Attributes:
        base: builds the base network from ``norm_layer``.
        layout: how it is cut into stages.
        edges, router_bias, side_bias, gate, block_shortcut, wiring_seed: see
            :class:`gram_backbones.dgnet.graph.DynamicGraph`.
        project_first: blocks of a ResNet's first stage all read the stage input projected to its
            output's width, block 1 too: a reading of Table 1's FLOPs, see docs/dgnet.md. The base
            network's weights then lack a fitting first convolution.
        preprocessing: preprocessing of the images that the variant is trained on.

    Examples:
        >>> from gram_backbones import DGNet
        >>> row = DGNetVariant(models.resnet18, RESNET, edges="static")
        >>> [tuple(x.shape) for x in DGNet(row)(torch.randn(2, 3, 64, 64)).values()]
        [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2)]
    """

    base: Callable[..., nn.Module]
    layout: Layout
    edges: str = "dynamic"
    router_bias: float = 3.0
    side_bias: float = -3.0
    gate: str = "straight_through"
    block_shortcut: bool = True
    wiring_seed: int = 0
    project_first: bool = False
    preprocessing: Preprocessing = IMAGENET_RGB

    def __post_init__(self):
        if self.project_first and self.layout.kind != "resnet":
            raise ValueError(f"project_first is for ResNets, not for a {self.layout.kind}")

    added = ("graphs.",)  # routers, thresholds, projections
    without_decay = (".thresholds", ".edge_weights")

    # What the layout says, see Variant. Dynamo traces lambdas, but no attrgetter.
    stem_paths = property(lambda self: self.layout.stem)
    first_conv = property(lambda self: self.layout.first_conv)
    before_pooling = property(lambda self: self.layout.before_pooling)
    head = property(lambda self: self.layout.head)
    classifier = property(lambda self: self.layout.classifier)
    recipes = property(lambda self: self.layout.recipes)
    namings = property(lambda self: NAMINGS[self.layout.kind])

    @property
    def graph_options(self) -> dict[str, Any]:
        """Arguments of every stage's :class:`gram_backbones.dgnet.graph.DynamicGraph`."""
        return {name: getattr(self, name) for name in GRAPH_OPTIONS}

    def takes_weights_of(self, row: Variant) -> bool:
        """Whether the base network is the same; its weights have no edges."""
        return isinstance(row, DGNetVariant) and (self.base, self.layout) == (row.base, row.layout)

    def place_of(self, feature: str) -> str:
        """Nothing: a stage's tensors keep the base network's names."""
        return ""

    def part_of(self, name: str) -> str:
        """The stem, stage or graph that a tensor belongs to."""
        first, second, *_ = [*name.split("."), ""]
        return f"{first}.{second}" if first in ("trunk_output", "features", "graphs") else first


_X600M: dict[str, Any] = dict(depth=16, w_0=48, w_a=36.97, w_m=2.24, group_width=24)
_X1600M: dict[str, Any] = dict(depth=18, w_0=80, w_a=34.01, w_m=2.25, group_width=24)
_Y600M: dict[str, Any] = dict(depth=15, w_0=48, w_a=32.54, w_m=2.32, group_width=16, se_ratio=0.25)
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
