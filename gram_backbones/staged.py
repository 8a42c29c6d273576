"""What every family of backbones states and shares: variants, features, freezing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from .layers import freeze
from .preprocessing import Preprocessing
from .renaming import Rename

if TYPE_CHECKING:
    from typing_extensions import Self

FEATURES = ("stem", "res2", "res3", "res4", "res5")


class Variant:
    """Base of a family's table rows, which are frozen dataclasses.

    A row says how a network is built, and what weight files, timm and converters have to know of
    it.

    Attributes:
        network: the family's class, which builds the row.
        preprocessing: of the images that the variant is trained on.
        stem_paths: paths of the modules that compute the stem, in order.
        first_conv: path of the first convolution.
        before_pooling: paths of what a classifier computes before its pooling.
        head: path of the classifier's module.
        classifier: path of its linear layer.
        namings: by name, the other namings of the network's tensors, as functions from ours.
        added: what a published file may lack: tensors whose names begin with one of these, or end
            with one that begins with a dot, keep their start together.
        without_decay: ends of the names of the parameters that weight decay would draw to 0, and
            that timm's optimisers must leave alone.
        recipes: rows of a data set's pattern and the name of the recipe that trains on it, see
            :mod:`gram_backbones.classification.recipes`; the first that fits counts.
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
        """The network of this row; ``options`` are those of the family's class."""
        return self.network(self, **options)

    def takes(self, option: str) -> bool:
        """Whether the family's class has an argument of this name."""
        return option in signature(self.network).parameters

    def part_of(self, name: str) -> str:
        """The stem, stage or other part that a tensor belongs to."""
        return name.partition(".")[0]

    def place_of(self, feature: str) -> str:
        """What stands before a stage's own names of its tensors in the whole network."""
        return f"{feature}."

    def read_names(self, found: Iterable[str]) -> tuple[str, Mapping[str, str]] | None:
        """A naming that can only be read: what it is called, and our names for those in a file.

        None where the file is in another naming.
        """
        return None


Row = TypeVar("Row", bound=Variant)


class StagedBackbone(nn.Module):
    """Base of the families: a stem and up to four stages, called ``res2`` to ``res5``.

    A family's constructor calls :meth:`_plan_features` first, builds the stem and
    :attr:`stage_names`, with ``num_classes`` the head, and ends with :meth:`freeze_stages`. Where a
    feature is not computed by one module of its name, the family overrides :meth:`run_feature`,
    :meth:`feature_modules`, :meth:`feature_path` and :meth:`remove_feature`.

    Attributes:
        VARIANTS: the family's table.
        PAPER: title of the paper.
        variant: row that the network was built from.
        feature_channels: channels of ``stem`` and of every stage that is built, by name.
        feature_strides: their total strides.
        before_pooling: see :class:`Variant`.
    """

    VARIANTS: ClassVar[Mapping[str, Variant]]
    PAPER: ClassVar[str]
    variant: Variant

    @classmethod
    def find_variant(cls, variant: str | Row, **changes: Any) -> Row:
        """A row of the family's table by name, or a record as it is, with some fields changed.

        Raises:
            ValueError: unknown name.
        """
        if isinstance(variant, str):
            if variant not in cls.VARIANTS:
                raise ValueError(f"variant is {variant!r}; allowed are {sorted(cls.VARIANTS)}")
            variant = cast(Row, cls.VARIANTS[variant])  # a family's table has rows of one class
        return replace(variant, **changes)

    def _plan_features(
        self,
        variant: Variant,
        channels: dict[str, int],
        strides: dict[str, int],
        out_features: Sequence[str | int] | None,
        num_classes: int | None,
    ) -> None:
        """Settle which stages are built and returned, before anything is built.

        Raises:
            ValueError: features that do not exist, or features of a classifier.
        """
        names = tuple(channels)
        if out_features is not None and num_classes is not None:
            raise ValueError(
                "a classifier returns no feature maps: give out_features or num_classes"
            )
        self.variant = variant
        self.before_pooling = () if num_classes is None else variant.before_pooling
        self.by_index = isinstance(out_features[0], int) if out_features else False
        self.out_features = _feature_names(out_features, names)
        self.num_classes = num_classes
        depth = len(names) - 1
        if num_classes is None:
            depth = max(map(names.index, self.out_features))
        self.frozen_stages = -1
        self.stage_names = names[1 : depth + 1]
        self.feature_channels = {name: channels[name] for name in names[: depth + 1]}
        self.feature_strides = {name: strides[name] for name in names[: depth + 1]}

    @property
    def size_divisibility(self) -> int:
        """Stride of the deepest stage that is built."""
        return max(self.feature_strides.values())

    # Features

    def run_feature(self, name: str, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """One feature from the one before, ``stem`` from the image; ``options`` of a family."""
        return getattr(self, name)(x, *args, **options)

    def feature_path(self, name: str) -> str:
        """Path of the module that returns a feature."""
        return name

    def feature_modules(self, name: str) -> list[nn.Module]:
        """All modules that compute one feature from the one before."""
        return [getattr(self, name)]

    def remove_feature(self, name: str) -> None:
        """Delete the modules of the last stage."""
        delattr(self, name)

    def forward_features(self, x: Tensor, **options: Any) -> dict[str, Tensor]:
        """Feature maps by name; those in ``out_features``, or the last one of a classifier.

        Args:
            x: images ``(B, 3, H, W)``.
            options: of the family.
        """
        wanted = self.out_features if self.num_classes is None else self.stage_names[-1:]
        features = {}
        for name in ("stem", *self.stage_names):
            x = self.run_feature(name, x, **options)
            if name in wanted:
                features[name] = x
        return features

    def finish(self, x: Tensor) -> Tensor:
        """What a classifier pools, from the last feature map."""
        for path in self.before_pooling:
            x = self.get_submodule(path)(x)
        return x

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """Feature maps by name or by index as ``out_features`` says, pooled features or logits."""
        return self.give(self.forward_features(x))

    def give(self, features: dict[str, Tensor]) -> dict[str, Tensor] | tuple[Tensor, ...] | Tensor:
        """What the forward pass returns of the features."""
        if self.num_classes is None:
            return tuple(features.values()) if self.by_index else features
        pooled = self.finish(features[self.stage_names[-1]]).mean((2, 3))
        return self.get_submodule(self.variant.head)(pooled) if self.num_classes else pooled

    # Start and freezing

    def start_without(self, names: Sequence[str]) -> None:
        """Prepare to train from a file that has been loaded and lacked these tensors.

        Only tensors that :attr:`Variant.added` allows can be lacking. A family may set them here.
        """

    def freeze_stages(self, frozen_stages: int) -> None:
        """Fix the first parts of the network: no gradients, and eval mode in training too.

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
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        names = FEATURES[: self.frozen_stages + 1]
        return [module for name in names for module in self.feature_modules(name)]


def remove_module(root: nn.Module, path: str) -> None:
    """Delete a module, and the containers that are empty then."""
    parent, _, name = path.rpartition(".")
    delattr(root.get_submodule(parent), name)
    if parent and not any(root.get_submodule(parent).children()):
        remove_module(root, parent)


def _feature_names(wanted: Sequence[str | int] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted features as names, shallow to deep.

    Raises:
        ValueError: nothing wanted, an unknown or repeated one, or names mixed with indices.
    """
    if wanted is None:
        return names[1:]
    indices = dict(enumerate(names[1:]))
    by_index = all(isinstance(item, int) for item in wanted)
    known: Mapping[Any, str] = indices if by_index else dict(zip(names, names))
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(known):
        raise ValueError(
            f"out_features is {tuple(wanted)}; allowed are distinct names out of {names} "
            f"or distinct indices out of {tuple(indices)}"
        )
    return tuple(sorted((known[item] for item in wanted), key=names.index))
