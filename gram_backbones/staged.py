"""What every family of backbones states and shares: variants, features, freezing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

from .fused import (
    KeepsFused,
    deploy,
    fast_format,
    format_of,
    run,
    sequential_chains,
)
from .layers import freeze
from .preprocessing import Preprocessing
from .renaming import Rename
from .suggestions import check_arguments, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

FEATURES = ("stem", "res2", "res3", "res4", "res5")
OUTPUT_STRIDES = (8, 16, 32)


class Variant:
    """Base of a family's table rows, which are frozen dataclasses.

    A row says how a network is built, and what the weight loader, the converters and timm need to
    know about it.

    Attributes:
        network: the family's class, which builds a network from the row.
        preprocessing: preprocessing of the images that the variant is trained on.
        stem_paths: paths of the modules that compute the stem, in order.
        first_conv: path of the first convolution.
        before_pooling: paths of the modules that a classifier runs before pooling.
        head: path of the classifier's module.
        classifier: path of its linear layer.
        namings: the known namings of the network's tensors by name, each a function that maps our
            name of a tensor to its name there.
        added: groups of tensors that a published file may lack. An entry is a prefix of the
            tensors' names, or a suffix if it begins with a dot. If a file has no tensor of a group,
            the whole group keeps its initial values; if it has one, it must have them all.
        without_decay: suffixes of the names of parameters that timm's optimisers must exempt from
            weight decay, which would pull them to 0.
        recipes: pairs of a data set pattern and the name of the recipe that trains on it, see
            :mod:`gram_backbones.classification.recipes`; the first pattern that matches counts.

    Examples:
        >>> from gram_backbones import AOGNet
        >>> row = AOGNet.find_variant("aognet_4m")
        >>> row.stem_paths
        ('stem.0', 'stem.1', 'stem.2', 'stem.3')
        >>> row.takes("dropout"), row.takes("edges")
        (True, False)
        >>> row.build(out_features=("res2",)).feature_channels
        {'stem': 16, 'res2': 56}
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # of every row
    network: ClassVar[type[StagedBackbone]]
    preprocessing: Preprocessing
    stem_paths: tuple[str, ...]
    first_conv: str
    before_pooling: tuple[str, ...] = ()
    head: str = "fc"
    classifier: str = "fc"
    namings: Mapping[str, Rename]
    added: tuple[str, ...] = ()
    without_decay: tuple[str, ...] = ()
    recipes: tuple[tuple[str, str], ...] = ()

    def build(self, **options: Any) -> StagedBackbone:
        """Build the network of this row; ``options`` are arguments of the family's class."""
        return self.network(self, **options)

    def takes(self, option: str) -> bool:
        """Whether the family's class has an argument of this name."""
        return option in self.network.argument_names()

    def feature_shapes(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Channels and total strides of ``stem`` and every stage, by name, shallow to deep."""
        with torch.device("meta"):
            network = self.build()
        return network.feature_channels, network.feature_strides

    def takes_weights_of(self, row: Variant) -> bool:
        """Whether published weights of another row's network are for this one's too."""
        return self == row

    def part_of(self, name: str) -> str:
        """The stem, stage or other part that a tensor belongs to."""
        return name.partition(".")[0]

    def place_of(self, feature: str) -> str:
        """What stands before a stage's own names of its tensors in the whole network."""
        return f"{feature}."

    def read_names(self, found: Iterable[str]) -> tuple[str, Mapping[str, str]] | None:
        """Recognise a naming that can be read but not written.

        Args:
            found: the names in a file, in its order.

        Returns:
            What the naming is called, and our names by the names in the file; None if the file is
            in another naming.
        """
        return None


Row = TypeVar("Row", bound=Variant)


class StagedBackbone(KeepsFused):
    """Base of the families: a stem and up to four stages, called ``res2`` to ``res5``.

    A family's constructor calls :meth:`_plan_features` first, builds the stem and
    :attr:`stage_names`, and the head if ``num_classes`` asks for one, and ends with
    :meth:`freeze_stages`. If a feature is not computed by a single module of its name, the family
    overrides :meth:`run_feature`, :meth:`feature_modules`, :meth:`feature_path` and
    :meth:`remove_feature`.

    Attributes:
        VARIANTS: the family's table.
        PAPER: title of the paper.
        variant: row that the network was built from.
        feature_channels: channels of ``stem`` and of every stage that is built, by name.
        feature_strides: their total strides.
        before_pooling: see :class:`Variant`.

    Examples:
        >>> import torch
        >>> from gram_backbones import DGNet
        >>> model = DGNet("dgnet_r18", out_features=("res2", "res4"))
        >>> model.stage_names  # res5 is not built
        ('res2', 'res3', 'res4')
        >>> model.feature_strides, model.size_divisibility
        ({'stem': 4, 'res2': 4, 'res3': 8, 'res4': 16}, 16)
        >>> features = model.forward_features(torch.randn(2, 3, 64, 64))
        >>> {name: tuple(x.shape) for name, x in features.items()}
        {'res2': (2, 64, 16, 16), 'res4': (2, 256, 4, 4)}
        >>> model.freeze_stages(1)  # the stem and res2
        >>> model.conv1.weight.requires_grad, model.layer1[0].conv1.weight.requires_grad
        (False, False)
    """

    VARIANTS: ClassVar[Mapping[str, Variant]]
    PAPER: ClassVar[str]
    variant: Variant

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse an argument that the class does not have, before anything is built."""
        check_arguments(cls.__name__, kwargs, cls.argument_names())
        return super().__new__(cls)

    @classmethod
    def argument_names(cls) -> set[str]:
        """Names of the constructor's arguments, also of those that an adapter passes on.

        A family whose ``__init__`` takes others too, by ``**``, adds them.
        """
        return {
            name
            for kind in cls.__mro__[: cls.__mro__.index(StagedBackbone)]
            if "__init__" in vars(kind)
            for name, given in [*signature(vars(kind)["__init__"]).parameters.items()][1:]
            if given.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        }

    @classmethod
    def find_variant(cls, variant: str | Row, **changes: Any) -> Row:
        """Look up a row of the family's table by name, or take a record; change some fields.

        Raises:
            ValueError: unknown name, or an unknown field.
        """
        if isinstance(variant, str):
            if variant not in cls.VARIANTS:
                meant = did_you_mean(variant, cls.VARIANTS)
                raise ValueError(
                    f"variant is {variant!r}{meant}; allowed are {sorted(cls.VARIANTS)}"
                )
            variant = cast(Row, cls.VARIANTS[variant])  # a family's table has rows of one class
        check_arguments(cls.__name__, changes, [field.name for field in fields(variant)])
        return replace(variant, **changes)

    def _plan_features(
        self,
        variant: Variant,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        out_features: Sequence[str] | None,
        num_classes: int | None,
        output_stride: int = 32,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        """Settle which stages are built and returned, before anything is built.

        Raises:
            ValueError: features that do not exist, features of a classifier, or an output stride
                out of ``OUTPUT_STRIDES``.
        """
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {output_stride}; allowed are {OUTPUT_STRIDES}")
        names = tuple(channels)
        given = [wanted for wanted in (out_features, out_indices) if wanted is not None]
        if given and num_classes is not None:
            raise ValueError(
                "a classifier returns no feature maps: give out_features or num_classes"
            )
        if len(given) > 1:
            raise ValueError(
                f"out_features is {tuple(given[0])} and out_indices {tuple(given[1])}; "
                "give one of them"
            )
        self.variant = variant
        self.before_pooling = () if num_classes is None else variant.before_pooling
        self.by_index = out_indices is not None
        if out_indices is not None:
            out_features = _names_of_indices(out_indices, names)
        self.out_features = _feature_names(out_features, names)
        self.num_classes = num_classes
        depth = len(names) - 1
        if num_classes is None:
            depth = max(map(names.index, self.out_features))
        self.frozen_stages = -1
        self.stage_names = names[1 : depth + 1]
        self.feature_channels = {name: channels[name] for name in names[: depth + 1]}
        self.output_stride = output_stride
        self.feature_strides = {n: min(strides[n], output_stride) for n in names[: depth + 1]}

    @property
    def size_divisibility(self) -> int:
        """Stride of the deepest stage that is built."""
        return max(self.feature_strides.values())

    # Features

    def run_feature(self, name: str, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Compute a feature from the previous one, ``stem`` from the image.

        Args:
            name: of the feature to compute.
            x: the previous feature map, or images ``(B, 3, H, W)`` for ``stem``.
            args, options: further arguments of the family, such as DG-Net's ``valid_sizes``.
        """
        module = getattr(self, name)
        return module(x, *args, **options) if args or options else run(module, x)

    def feature_path(self, name: str) -> str:
        """Path of the module that returns a feature."""
        return name

    def feature_modules(self, name: str) -> list[nn.Module]:
        """All modules that compute a feature from the previous one."""
        return [getattr(self, name)]

    def remove_feature(self, name: str) -> None:
        """Delete the modules of the last stage."""
        delattr(self, name)

    def forward_features(self, x: Tensor, **options: Any) -> dict[str, Tensor]:
        """Feature maps by name: those in ``out_features``; for a classifier, only the last one.

        Args:
            x: images ``(B, 3, H, W)``.
            options: passed to :meth:`run_feature`.
        """
        wanted = self.out_features if self.num_classes is None else self.stage_names[-1:]
        image, x = x, fast_format(x)
        features = {}
        for name in ("stem", *self.stage_names):
            x = self.run_feature(name, x, **options)
            if name in wanted:
                features[name] = format_of(image, x)
        return features

    def finish(self, x: Tensor) -> Tensor:
        """Map the last feature map to what a classifier pools."""
        for path in self.before_pooling:
            x = self.get_submodule(path)(x)
        return x

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """Feature maps by name, or a tuple of them for ``out_indices``; pooled features; logits."""
        return self.give(self.forward_features(x))

    def give(self, features: dict[str, Tensor]) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """Turn feature maps into the output of :meth:`forward`: the maps, pooled or logits."""
        if self.num_classes is None:
            return tuple(features.values()) if self.by_index else features
        pooled = self.finish(features[self.stage_names[-1]]).mean((2, 3))
        return self.get_submodule(self.variant.head)(pooled) if self.num_classes else pooled

    # Inference

    def conv_chains(self) -> Iterator[list[nn.Module]]:
        """Modules that run one after the other; in these a convolution and its norm become one."""
        yield [self.get_submodule(path) for path in self.variant.stem_paths]
        yield from sequential_chains(self)

    def deploy(self) -> Self:
        """A copy for inference, see :func:`gram_backbones.fused.deploy`."""
        return cast("Self", deploy(self))

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: the network as torch.fx traces it.

        Its mode, training or evaluation, is that of the network now.
        """
        graph = Tracer().trace(self)
        for node in graph.nodes:
            if node.op == "placeholder":
                node.type = Tensor  # in place of the annotation, a string
                if not node.users:  # DG-Net's sizes of images
                    graph.erase_node(node)
        return GraphModule(self, graph)

    # Start and freezing

    def start_without(self, names: Sequence[str]) -> str:
        """Set tensors that a file which has just been loaded lacked; what was done, for the log.

        Only tensors that :attr:`Variant.added` allows can be lacking. The base class does nothing.
        """
        return ""

    def freeze_stages(self, frozen_stages: int) -> None:
        """Freeze the first parts of the network: no gradients, and eval mode even in training.

        Args:
            frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.

        Raises:
            ValueError: ``frozen_stages`` beyond the stages that are built.
        """
        depth = len(self.stage_names)
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f"frozen_stages is {frozen_stages}; allowed are -1 to {depth}")
        self.frozen_stages = frozen_stages
        for module in self._frozen_modules():
            freeze(module)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen stages stay in eval mode.

        Raises:
            ValueError: a deployed network is to train.
        """
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        names = FEATURES[: self.frozen_stages + 1]
        return [module for name in names for module in self.feature_modules(name)]


def remove_module(root: nn.Module, path: str) -> None:
    """Delete a module, and the containers that this leaves empty."""
    parent, _, name = path.rpartition(".")
    delattr(root.get_submodule(parent), name)
    if parent and not any(root.get_submodule(parent).children()):
        remove_module(root, parent)


def _feature_names(wanted: Sequence[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted features, shallow to deep.

    Raises:
        ValueError: nothing wanted, or an unknown or repeated one.
    """
    if wanted is None:
        return names[1:]
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(names):
        hint = ""
        if any(isinstance(item, int) for item in wanted):
            hint = "; indices are given as out_indices, which counts as timm does: 1 is 'res2'"
        raise ValueError(
            f"out_features is {tuple(wanted)}; allowed are distinct names out of {names}{hint}"
        )
    return tuple(sorted(wanted, key=names.index))


def _names_of_indices(wanted: Sequence[int], names: tuple[str, ...]) -> tuple[str, ...]:
    """The features with these indices, counted as timm does.

    Raises:
        ValueError: nothing wanted, or an unknown or repeated one. So is 0: timm's feature 0 is the
            stem before its max pooling, the core's ``"stem"`` is after it.
    """
    allowed = tuple(range(1, len(names)))
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(allowed):
        raise ValueError(
            f"out_indices is {tuple(wanted)}; allowed are distinct indices out of {allowed}, "
            f"counted as timm does: 1 is 'res2'; out_features takes names, also 'stem'"
        )
    return tuple(names[index] for index in wanted)
