"""A whole detector's weights: its backbone, a C4 head's last stage, its neck and heads."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ..staged import Variant
from .files import WeightError, WeightFile
from .fit import Fit, fit, is_counter, match, network_tensors, shorten

HEADS = ("optional", "other_classes", "exact")
# Buffers that a detector's config sets.
_GIVEN = ("pixel_mean", "pixel_std")
# Layers whose size goes with the number of classes, by the frameworks' names; RPNs' do not.
_BY_CLASSES = re.compile(
    r"(\bbox_predictor\.(\d+\.)?(cls_score|bbox_pred)|\bcls_score|_cls|\bfc_reg|\bpredictor"
    r"|\bconv_logits|\bcls_branches(\.\d+)?|\bclass_embed(\.\d+)?)\.(weight|bias)$"
)


@dataclass(frozen=True)
class DetectorFit:
    """Which tensors of a file go where in a detector.

    Attributes:
        source: the file.
        values: new values of the detector's tensors, by their names in it.
        networks: one fit per network; the stage of a C4 head is part of its backbone's.
        heads: number of tensors of neck and heads among ``values``.
        resized: tensors for another number of classes, which keep their initial values.
        others: names in the file that the detector does not have.
        roots: per network, the prefixes of its parts in the detector.
    """

    source: str
    values: Mapping[str, Tensor]
    networks: tuple[Fit, ...]
    heads: int
    resized: tuple[str, ...]
    others: tuple[str, ...]
    roots: tuple[tuple[str, ...], ...] = ()

    def after_start(self, parts: Mapping[str, nn.Module]) -> DetectorFit:
        """Let networks that were just filled set what the file lacked; ``parts`` as in the fit."""
        fits = [
            found.after_start(*(parts[root] for root in roots))
            for found, roots in zip(self.networks, self.roots, strict=True)
        ]
        return replace(self, networks=tuple(fits))

    def report(self) -> list[tuple[int, str]]:
        """Levels and lines to log: how many tensors were loaded, and what was not used."""
        lines = [line for network in self.networks for line in network.report()]
        if self.heads:
            text = f"loaded {self.heads} tensors of neck and heads from {self.source}"
            lines.append((logging.INFO, text))
        if self.others:
            text = f"in the file but not in this detector: {shorten(self.others)}"
            lines.append((logging.INFO, text))
        if self.resized:
            names = ", ".join(self.resized)
            text = f"initial values kept because the number of classes differs: {names}"
            lines.append((logging.WARNING, text))
        return lines


@dataclass
class _Network:
    """A family's network in a detector.

    Attributes:
        variant: row that it was built from.
        places: its tensors' names in the detector, by their names in the whole network.
        roots: prefixes of its parts in the detector, and their prefixes in the whole network.
    """

    variant: Variant
    places: dict[str, str] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)

    def fit(self, own: Mapping[str, Tensor], file: WeightFile) -> Fit:
        """Find the network's tensors in a file, first under their names in this detector."""
        wanted = {whole: own[place] for whole, place in self.places.items()}
        if not all(is_counter(n) or place in file.tensors for n, place in self.places.items()):
            return fit(wanted, self.variant, file)
        mine, others = {}, []
        for name, value in file.tensors.items():
            root = next((root for root in self.roots if name.startswith(root)), None)
            if root is None:
                others.append(name)
            else:
                mine[self.roots[root] + name.removeprefix(root)] = value
        found = fit(wanted, self.variant, WeightFile(file.source, mine, file.record))
        return replace(found, others=tuple(others))


def fit_detector(
    own: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module],
    file: WeightFile,
    *,
    heads: str = "optional",
) -> DetectorFit:
    """Find every tensor of a detector in a file.

    The file may be of this detector, of a backbone alone, or of a backbone in another detector. The
    backbone may have any names that `gram_backbones.weights.names` recognises.

    Args:
        own: the detector's tensors by name.
        parts: this package's networks and stages in it, by the prefixes of their tensors' names.
        file: the file that was read.
        heads: which tensors outside the backbone are required. ``"optional"``: all of neck and
            heads, or none; ``"other_classes"``: all, except that predictors for another number of
            classes keep their initial values (as with ``"optional"``); ``"exact"``: all.

    Raises:
        ValueError: an unknown ``heads``.
        WeightError: tensors are missing, have another shape, are not finite, or are left over in
            the backbone. The message names them.
    """
    if heads not in HEADS:
        raise ValueError(f"heads is {heads!r}; allowed are {HEADS}")
    tensors = {name.removeprefix("module."): value for name, value in file.tensors.items()}
    file = WeightFile(file.source, tensors, file.record)
    values: dict[str, Tensor] = {}
    fits: list[Fit] = []
    networks = _networks(parts)
    for network in networks:
        found = network.fit(own, file)
        fits.append(found)
        values |= {network.places[whole]: value for whole, value in found.values.items()}
    places = {place for network in networks for place in network.places.values()}
    outside = {n: v for n, v in own.items() if n not in places and is_required(n)}
    rest: dict[str, Tensor] = {}
    resized: list[str] = []
    if heads != "optional" or outside.keys() & tensors.keys():
        rest, resized = _fit_heads(outside, file, other_classes=heads != "exact")
    taken = {*values, *rest, *resized}
    unused = set(tensors).intersection(*(found.others for found in fits)) - taken
    others = [n for n in tensors if n in unused and is_required(n)]
    values |= rest
    ignored = [tuple(n for n in found.ignored if n not in taken) for found in fits]
    fits = [replace(found, ignored=i, others=()) for found, i in zip(fits, ignored, strict=True)]
    return DetectorFit(
        file.source,
        values,
        tuple(fits),
        len(rest),
        tuple(resized),
        tuple(others),
        tuple(tuple(network.roots) for network in networks),
    )


def _networks(parts: Mapping[str, nn.Module]) -> list[_Network]:
    """Whole networks: a C4 detector's backbone with its head's stage; a teacher is another one."""
    networks: list[_Network] = []
    for root, module in parts.items():
        variant, names = network_tensors(module)
        places = {whole: root + name for whole, name in names.items()}
        fitting = (n for n in networks if n.variant == variant and not n.places.keys() & places)
        network = next(fitting, None)
        if network is None:
            network = _Network(variant)
            networks.append(network)
        network.places |= places
        whole, name = next(iter(names.items()))
        network.roots[root] = whole.removesuffix(name)
    return networks


def _fit_heads(
    own: Mapping[str, Tensor], file: WeightFile, *, other_classes: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """New values of neck and heads, and the names of those for another number of classes."""

    def goes_with_classes(name: str, value: Tensor) -> bool:
        same_inputs = value.shape[1:] == own[name].shape[1:]
        return other_classes and _goes_with_classes(name) and same_inputs

    matched = match(own, file.tensors, goes_with_classes)
    if not matched:
        where = "tensors of this detector's neck and heads"
        raise WeightError(matched.complaint(file.source, where))
    return matched.values, list(matched.resized)


def is_required(name: str) -> bool:
    """Whether a file must have a tensor of a detector: all but pixel statistics and counters."""
    return not name.endswith(_GIVEN) and not is_counter(name)


def _goes_with_classes(name: str) -> bool:
    return "rpn" not in name and _BY_CLASSES.search(name) is not None
