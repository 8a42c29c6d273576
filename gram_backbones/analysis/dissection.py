"""Network dissection in small: which units of a layer detect an annotated concept.

"Network Dissection: Quantifying Interpretability of Deep Visual Representations" (Bau et al., CVPR
2017), as the AOGNet paper's Figure 6 applies it. A unit is a channel of a layer. Its threshold is
the value that only a share of its activations over all images reach, 0.5 %. Where its activation,
resized to the image, reaches that threshold, the unit is on. Its IoU with a concept is that of
where it is on and where the concept is annotated, with intersection and union summed over all
images. A unit detects the concept with which its IoU is largest, if that is above 0.04; the score
of a network is the number of unique concepts that its units detect.

Here the concepts are the categories of a COCO-format data set with masks, not those of Broden.
Images pass twice, one at a time: `UnitQuantiles` finds the thresholds, `Overlaps` sums the areas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..staged import StagedBackbone
from ..suggestions import did_you_mean

SHARE = 0.005  # of activations above a unit's threshold
MIN_IOU = 0.04
BINS = 4096  # of a unit's histogram
_AT_ONCE = 64  # units that are resized to the image at the same time


class UnitQuantiles:
    """Upper quantiles of every unit's activations, from histograms that grow with their range.

    A histogram has `BINS` equal bins between the bounds of its unit. When a value lies beyond them,
    pairs of bins are merged, which doubles the range. The quantile is the lowest border between
    bins that at most the given share of the values reach, so it is at most one bin above the exact
    one: 1/2048 of the range between the unit's least and largest value.

    Attributes:
        count: values seen per unit.

    Examples:
        >>> quantiles = UnitQuantiles()
        >>> for values in np.split(np.arange(1000.0), 4):
        ...     quantiles.add(torch.tensor(values)[None])  # one unit
        >>> quantiles.above(0.01).round(1), quantiles.reached(0.01)  # 990 to 999 reach it
        (array([989.2]), array([0.01]))
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Count activations in.

        Args:
            values: ``(units, values)``.

        Raises:
            ValueError: a value is not finite.
        """
        values = values.double()
        if not values.isfinite().all():
            raise ValueError("an activation is not finite: the network diverged or is not trained")
        least, most = values.amin(1), values.amax(1)
        if not self.count:
            self._low = least.clone()
            # A unit that is dead so far gets a small range, which can grow.
            self._width = ((most - least) / BINS).clamp(min=1e-9)
            self._bins = torch.zeros(len(values), BINS, dtype=torch.long, device=values.device)
        self._grow(least, most)
        self.count += values.shape[1]
        places = ((values - self._low[:, None]) / self._width[:, None]).long().clamp_(0, BINS - 1)
        places += torch.arange(len(values), device=values.device)[:, None] * BINS
        self._bins += places.flatten().bincount(minlength=self._bins.numel()).view_as(self._bins)

    def _grow(self, least: Tensor, most: Tensor) -> None:
        """Double the range of units until it holds their new values, downwards or upwards."""
        while True:
            below = least < self._low
            beyond = ~below & (most > self._low + BINS * self._width)
            changed = below | beyond
            if not changed.any():
                return
            pairs = self._bins.view(len(self._bins), -1, 2).sum(2)
            empty = torch.zeros_like(pairs)
            down, up = torch.cat([empty, pairs], 1), torch.cat([pairs, empty], 1)
            self._bins = torch.where(below[:, None], down, self._bins)
            self._bins = torch.where(beyond[:, None], up, self._bins)
            self._low = torch.where(below, self._low - BINS * self._width, self._low)
            self._width = torch.where(changed, 2 * self._width, self._width)

    def above(self, share: float = SHARE) -> np.ndarray:
        """The value of each unit that at most this share of its activations reach, ``(units,)``."""
        border = self._border(share)
        return (self._low + border * self._width).cpu().numpy()

    def reached(self, share: float = SHARE) -> np.ndarray:
        """The share of each unit's activations that do reach it, ``(units,)``."""
        tails = self._tails().gather(1, self._border(share)[:, None])[:, 0]
        return tails.numpy() / self.count

    def _tails(self) -> Tensor:
        """How many values are at or above each border, ``(units, BINS + 1)``; at the last, none."""
        return F.pad(self._bins.flip(1).cumsum(1).flip(1), (0, 1)).cpu()

    def _border(self, share: float) -> Tensor:
        few = self._tails() <= share * self.count
        return few.int().argmax(1).to(self._low.device)


@dataclass
class Overlaps:
    """Areas in pixels, summed over images: of units, of concepts, and where both are.

    Attributes:
        units: where each unit is on, ``(units,)``.
        concepts: where each concept is annotated, ``(concepts,)``.
        both: ``(units, concepts)``.

    Examples:
        >>> areas = Overlaps(np.array([40.0]), np.array([30.0, 5.0]), np.array([[20.0, 1.0]]))
        >>> areas.iou().round(3)
        array([[0.4  , 0.023]])
    """

    units: np.ndarray
    concepts: np.ndarray
    both: np.ndarray

    @classmethod
    def empty(cls, units: int, concepts: int) -> Overlaps:
        """Nothing seen yet."""
        return cls(np.zeros(units), np.zeros(concepts), np.zeros((units, concepts)))

    def add(self, activations: Tensor, thresholds: Tensor, masks: Tensor) -> None:
        """Add an image's areas.

        Args:
            activations: ``(units, h, w)``.
            thresholds: ``(units,)``.
            masks: of all concepts ``(concepts, H, W)``, boolean; activations are resized to them.
        """
        present = masks.flatten(1).any(1).nonzero()[:, 0].tolist()
        flat = masks[present].flatten(1).float()
        self.concepts[present] += flat.sum(1).cpu().numpy()
        for start in range(0, len(activations), _AT_ONCE):
            chosen = slice(start, start + _AT_ONCE)
            is_on = is_active(activations[chosen], thresholds[chosen], masks.shape[1:]).flatten(1)
            self.units[chosen] += is_on.sum(1).cpu().numpy()
            self.both[chosen, present] += (is_on.float() @ flat.T).cpu().numpy()

    def iou(self) -> np.ndarray:
        """IoU of every unit with every concept, ``(units, concepts)``; 0 where both are nowhere."""
        union = self.units[:, None] + self.concepts - self.both
        return self.both / np.maximum(union, 1)


def is_active(activations: Tensor, thresholds: Tensor, size: Sequence[int]) -> Tensor:
    """Where units are on, ``(units, H, W)``: their activations, resized bilinearly, at threshold.

    Args:
        activations: ``(units, h, w)``.
        thresholds: ``(units,)``.
        size: H and W.

    Examples:
        >>> is_active(torch.tensor([[[0.0, 4.0]]]), torch.tensor([3.0]), (1, 4)).tolist()
        [[[False, False, True, True]]]
    """
    large = F.interpolate(activations[None], tuple(size), mode="bilinear", align_corners=False)[0]
    return large >= thresholds[:, None, None]


@dataclass(frozen=True)
class Dissection:
    """The units of a layer and the concepts they detect.

    Attributes:
        concepts: names.
        thresholds: of the units, ``(units,)``.
        reached: share of each unit's activations at or above its threshold; at most `SHARE`.
        iou: ``(units, concepts)``.
        best_images: of each unit, the indices of the images with its largest activations, best
            first, ``(units, images)``.
        min_iou: above which a unit detects a concept.

    Examples:
        >>> iou = np.array([[0.10, 0.02], [0.05, 0.20], [0.01, 0.03], [0.07, 0.06]])
        >>> found = Dissection(("cat", "dog"), np.zeros(4), np.zeros(4), iou, np.zeros((4, 1)))
        >>> found.detectors(), found.unique_concepts, found.best_units()
        ({'cat': [0, 3], 'dog': [1]}, 2, [1, 0])
    """

    concepts: tuple[str, ...]
    thresholds: np.ndarray
    reached: np.ndarray
    iou: np.ndarray
    best_images: np.ndarray
    min_iou: float = MIN_IOU

    def detectors(self) -> dict[str, list[int]]:
        """By concept, the units that detect it, best first, without concepts that none detects.

        A unit counts for the one concept with which its IoU is largest.
        """
        found: dict[str, list[int]] = {}
        best = self.iou.argmax(1)
        for unit in np.argsort(-self.iou.max(1), kind="stable"):
            if self.iou[unit, best[unit]] > self.min_iou:
                found.setdefault(self.concepts[best[unit]], []).append(int(unit))
        return {concept: found[concept] for concept in self.concepts if concept in found}

    @property
    def unique_concepts(self) -> int:
        """The number of concepts that some unit detects, the score of a network."""
        return len(self.detectors())

    def best_units(self) -> list[int]:
        """The best detector of every concept, by falling IoU."""
        return sorted((units[0] for units in self.detectors().values()), key=self._best_iou)

    def _best_iou(self, unit: int) -> float:
        return -float(self.iou[unit].max())


def dissect(
    model: nn.Module,
    layer: nn.Module,
    read: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    concepts: Sequence[str],
    *,
    share: float = SHARE,
    min_iou: float = MIN_IOU,
    best: int = 4,
) -> Dissection:
    """Find the concepts that the units of a layer detect.

    Args:
        model: takes images ``(1, 3, h, w)``; it is put into eval mode.
        layer: one of its modules, which returns a map ``(1, units, h, w)``.
        read: called once for each of two passes; gives images ``(1, 3, h, w)``, each with the masks
            of all concepts ``(concepts, H, W)``, boolean, on the model's device.
        concepts: names.
        share: of a unit's activations above its threshold.
        min_iou: above which a unit detects a concept.
        best: how many images with the largest activations to remember per unit.

    Raises:
        ValueError: the layer does not run, or returns no such map; an activation is not finite; or
            there are no images.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 1))
        >>> images = [(torch.randn(1, 3, 16, 16), torch.rand(1, 16, 16) > 0.5) for _ in range(3)]
        >>> dissect(model, model[0], lambda: images, ["noise"]).iou.shape
        (2, 1)
    """
    quantiles, largest = UnitQuantiles(), _Largest(best)
    for maps, _ in _activations(model, layer, read()):
        quantiles.add(maps.flatten(1))
        largest.add(maps.amax((1, 2)).cpu())
    if not quantiles.count:
        raise ValueError("there are no images to dissect the network with")
    thresholds = torch.from_numpy(quantiles.above(share))
    areas = Overlaps.empty(len(thresholds), len(concepts))
    for maps, masks in _activations(model, layer, read()):
        areas.add(maps, thresholds.to(maps), masks)
    return Dissection(
        tuple(concepts),
        thresholds.numpy(),
        quantiles.reached(share),
        areas.iou(),
        largest.images.numpy(),
        min_iou,
    )


class _Largest:
    """The images with the largest values of each unit, best first."""

    def __init__(self, number: int):
        self.number = number
        self.count = 0
        self.values, self.images = torch.zeros(0), torch.zeros(0, dtype=torch.long)

    def add(self, values: Tensor) -> None:
        """Take the next image's values, ``(units,)``."""
        images = torch.full((len(values), 1), self.count)
        values = values[:, None]
        if self.count:
            values, images = (
                torch.cat([self.values, values], 1),
                torch.cat([self.images, images], 1),
            )
        self.values, order = values.topk(min(self.number, values.shape[1]), 1)
        self.images = images.gather(1, order)
        self.count += 1


def unit_maps(model: nn.Module, layer: nn.Module, image: Tensor) -> Tensor:
    """The activations ``(units, h, w)`` of a layer on an image ``(1, 3, H, W)``.

    Raises:
        ValueError: see :func:`dissect`.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 1))
        >>> unit_maps(model, model[0], torch.randn(1, 3, 16, 16)).shape
        torch.Size([2, 16, 16])
    """
    ((maps, _),) = _activations(model, layer, [(image, image)])
    return maps


def find_layer(model: StagedBackbone, name: str) -> nn.Module:
    """The module of a feature such as ``res4``, or of a path such as ``layer3.0.conv1``.

    Raises:
        ValueError: there is neither.

    Examples:
        >>> from gram_backbones import DGNet
        >>> model = DGNet("dgnet_r18")
        >>> find_layer(model, "layer3.0.conv1") is model.layer3[0].conv1
        True
    """
    path = model.feature_path(name) if name in model.feature_channels else name
    modules = dict(model.named_modules())
    if path not in modules or not path:
        features = [*model.feature_channels]
        meant = did_you_mean(name, [*features, *modules])
        raise ValueError(
            f"there is no layer {name!r}{meant}; allowed are {features} and the names of modules"
        )
    return modules[path]


@contextmanager
def _kept_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def _activations(
    model: nn.Module, layer: nn.Module, images: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image's maps ``(units, h, w)`` and masks."""
    model.eval()
    with _kept_output(layer) as outputs:
        for image, masks in images:
            outputs.clear()
            model(image)
            if not outputs:
                raise ValueError("the layer does not run on an image; choose another one")
            maps = outputs[-1]
            if not isinstance(maps, Tensor) or maps.ndim != 4:
                shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
                raise ValueError(f"the layer returns {shape}; it must return (1, units, h, w)")
            yield maps[0].float(), masks
