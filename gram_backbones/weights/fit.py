"""Weights that provably fill a network: every tensor, or the file is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..registry import find_variant, list_models
from ..staged import Variant
from .files import WeightError, WeightFile
from .names import find_names, meta_tensors

__all__ = [
    "Fit",
    "WeightError",
    "fit",
    "fitting_models",
    "network_tensors",
]


@runtime_checkable
class _Starts(Protocol):
    """A module that can set tensors which a file lacked, see :class:`StagedBackbone`."""

    def start_without(self, names: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Fit:
    """Which tensors of a file go where in a network.

    Attributes:
        source: the file.
        wanted: number of tensors that this kind of file should provide; counters of BN may be
            missing.
        values: new values of the network's tensors, by their names in the whole network.
        kept: tensors that this kind of file does not contain and that keep their initial values:
            routers of a DG-Net where the file is its base network's, learned λ's.
        ignored: names in the file of the classifier and of stages that are not built.
        others: names in the file of a detector's parts outside the backbone.
        warnings: reasons why the file may be wrong although it fits.
        start: what the network did about the tensors in ``kept``; empty where nothing.

    Examples:
        >>> from gram_backbones import AOGNet, load_weights
        >>> classifier = AOGNet("aognet_4m", num_classes=10)
        >>> fit = load_weights(AOGNet("aognet_4m", out_features=("res2",)), classifier.state_dict())
        >>> len(fit.values) == fit.wanted, fit.kept
        (True, ())
        >>> fit.ignored[-1]  # the file has more than the model
        'fc.bias'
    """

    source: str
    wanted: int
    values: Mapping[str, Tensor]
    kept: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    start: str = ""

    def after_start(self, *modules: nn.Module) -> Fit:
        """Let modules that were just filled set what the file lacked, and say what they did."""
        done = [m.start_without(self.kept) for m in modules if isinstance(m, _Starts)]
        return replace(self, start=next(filter(None, done), ""))

    def report(self) -> list[tuple[int, str]]:
        """Levels and lines to log: how many tensors were loaded, and what was not used."""
        lines = [f"loaded {len(self.values)} of {self.wanted} tensors from {self.source}"]
        for names, what in (
            (
                self.kept,
                "not in this kind of file" + ("" if self.start else ", initial values kept"),
            ),
            (self.ignored, "in the file but not used (classifier, or stages that are not built)"),
            (self.others, "in the file but not used (outside the backbone)"),
        ):
            if names:
                lines.append(f"{what}: {shorten(names)}")
        lines += [self.start] if self.start else []
        warnings = [f"check {self.source}: {warning}" for warning in self.warnings]
        return [(logging.INFO, line) for line in lines] + [(logging.WARNING, w) for w in warnings]


@dataclass(frozen=True)
class Match:
    """The result of comparing a network's tensors with a file's.

    Attributes:
        values: tensors that fit, by name.
        resized: names of tensors that differ only in the number of classes.
        problems: names by kind of problem: missing, of another shape, not finite; a caller may add
            kinds.
    """

    values: dict[str, Tensor]
    resized: tuple[str, ...]
    problems: dict[str, list[str]]

    def __bool__(self) -> bool:
        return not any(self.problems.values())

    @property
    def wanted(self) -> int:
        """Number of tensors that were looked for."""
        problems = self.problems
        found = len(self.values) + len(self.resized) + len(problems["of another shape"])
        return found + len(problems["missing"])

    def complaint(self, source: object, where: str = "tensors") -> str:
        """What does not fit, for messages."""
        parts = [f"{what}: {shorten(names)}" for what, names in self.problems.items() if names]
        filled = len(self.values) - len(self.problems["not finite"])
        return f"{source} fills {filled} of {self.wanted} {where}; {'; '.join(parts)}"


def match(
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    goes_with_classes: Callable[[str, Tensor], bool] = lambda name, value: False,
    *,
    finite: bool = True,
) -> Match:
    """Compare tensors by name, strictly; only BN's counters of batches may be missing.

    Args:
        own: the network's tensors.
        found: the file's tensors, by the same names.
        goes_with_classes: called with the name and value of a tensor whose shape differs; True if
            this is due to another number of classes, which is allowed.
        finite: whether values must be finite.
    """
    values, resized = {}, []
    missing = [name for name in own if name not in found and not is_counter(name)]
    wrong = []
    for name, mine in own.items():
        if (value := found.get(name)) is None:
            continue
        if value.shape == mine.shape and value.is_floating_point() == mine.is_floating_point():
            values[name] = value
        elif goes_with_classes(name, value):
            resized.append(name)
        else:
            wrong.append(f"{name} ({describe_tensor(value)} instead of {describe_tensor(mine)})")
    # In the network's precision, where a finite value of float64 may overflow.
    infinite = [n for n, v in values.items() if finite and not v.to(own[n].dtype).isfinite().all()]
    problems = {"missing": missing, "of another shape": wrong, "not finite": infinite}
    return Match(values, tuple(resized), problems)


def fit(network: Mapping[str, Tensor], variant: Variant, file: WeightFile) -> Fit:
    """Find every tensor of a network in a file.

    Args:
        network: the network's tensors by their names in the whole network of ``variant``; for a
            part of it, only that part's.
        variant: row that the network was built from.
        file: the file that was read.

    Raises:
        WeightError: tensors are missing, have another shape, are not finite, or are left over. The
            message names them, and the models that the file would fit.
    """
    found, matched = _compare(network, variant, file)
    if not matched:
        models = ", ".join(fitting_models(file)) or "none of our models"
        raise WeightError(f"{matched.complaint(file.source)}; its tensors fit {models}")
    return found


def _compare(
    network: Mapping[str, Tensor], variant: Variant, file: WeightFile, *, finite: bool = True
) -> tuple[Fit, Match]:
    """The fit of a file, valid only if it matches, and the match."""
    naming, prefix, names = find_names(variant, file.tensors)
    found = {mine: file.tensors[name] for name, mine in names.items()}
    head = f"{variant.head}."
    wanted, kept = _required_names(network, variant, found)
    matched = match(
        {name: network[name] for name in wanted},
        found,
        lambda name, _: name.startswith(head),
        finite=finite,
    )
    values = matched.values
    unmapped = [n for n in file.tensors if n not in names and not is_counter(n)]
    inside = prefix.endswith(("backbone.", "bottom_up."))
    others = [n for n in unmapped if inside and not n.startswith(prefix)]
    left = [n for n in unmapped if n not in others]
    ignored = [n for n, mine in names.items() if mine not in values and not is_counter(n)]
    built = {variant.part_of(name) for name in network if not name.startswith(head)}
    # A stage that is built must take every tensor that the file has of it.
    left += [n for n in ignored if variant.part_of(names[n]) in built and names[n] not in wanted]
    matched.problems["left over"] = left
    fitted = Fit(
        file.source,
        matched.wanted,
        values,
        tuple(kept),
        tuple(ignored),
        tuple(others),
        tuple(_warnings(file, variant, naming)),
    )
    return fitted, matched


def _warnings(file: WeightFile, variant: Variant, naming: str) -> list[str]:
    images, found = variant.preprocessing, []
    for key in ("mean", "std", "channel_order"):
        said = file.record.get(key)
        if said is not None and said != str(getattr(images, key)):
            found.append(f"its {key} is {said}, but our configs use {getattr(images, key)}")
    if naming == "detectron2" and "author" not in file.record:
        found.append(
            "it has Detectron2's tensor names and does not name its author. Detectron2's MSRA "
            "ResNets (BGR, stride in the first 1×1 convolution) would fit but be wrong"
        )
    return found


def _required_names(
    network: Iterable[str], variant: Variant, found: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The tensors that a file must fill, and those that keep their initial values without it."""
    absent = [part for part in variant.added if not any(_is_part(name, part) for name in found)]
    optional = [n for n in network if any(_is_part(n, part) for part in absent)]
    required = [n for n in network if n not in optional]
    return required, [n for n in optional if not is_counter(n)]


def _is_part(name: str, part: str) -> bool:
    return name.endswith(part) if part.startswith(".") else name.startswith(part)


def is_counter(name: str) -> bool:
    """Whether a tensor is BN's count of batches, which files may lack.

    Only BN with a momentum of None reads it.
    """
    return name.endswith("num_batches_tracked")


def fitting_models(file: WeightFile) -> list[str]:
    """Names of the models whose tensors, classifier aside, match a file's in name and shape."""
    fitting = []
    for model in list_models():
        variant = find_variant(model)
        own = meta_tensors(variant)
        own = {n: v for n, v in own.items() if not n.startswith(f"{variant.head}.")}
        if _compare(own, variant, file, finite=False)[1]:
            fitting.append(model)
    return fitting


def network_tensors(module: nn.Module) -> tuple[Variant, dict[str, str]]:
    """The variant of a network or stage, and its tensors' names by those in the whole network.

    Raises:
        TypeError: the module is neither a network nor a stage of this package.

    Examples:
        >>> from gram_backbones.aognet import AOGStage
        >>> variant, names = network_tensors(AOGStage("aognet_4m", 0))
        >>> next(iter(names.items()))
        ('res2.blocks.0.ops.0.conv1.0.weight', 'blocks.0.ops.0.conv1.0.weight')
    """
    variant = getattr(module, "variant", None)
    if not isinstance(variant, Variant):
        raise TypeError(
            f"{type(module).__name__} is neither a network nor a stage of gram_backbones"
        )
    place = getattr(module, "place", "")
    return variant, {place + name: name for name in module.state_dict()}


def describe_tensor(value: Tensor) -> str:
    """Data type and shape, for messages."""
    return f"{'floats' if value.is_floating_point() else 'integers'} {tuple(value.shape)}"


def shorten(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
