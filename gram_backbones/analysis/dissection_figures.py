"""Figures of a dissection: how many concepts networks detect, and the best units at work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from .dissection import Dissection, is_active, unit_maps
from .figures import Figure
from .masks import MaskedPictures

_MOST_CONCEPTS = 40
_MOST_UNITS = 8


def draw_concepts(found: Mapping[str, Dissection]) -> Figure:
    """Unique concepts per network, and the units that detect each concept.

    Args:
        found: by the name of the network.

    Examples:
        >>> from gram_backbones.analysis.dissection import Dissection
        >>> one = Dissection(("cat",), np.zeros(1), np.zeros(1), np.ones((1, 1)), np.zeros((1, 1)))
        >>> [axes.get_title() for axes in draw_concepts({"aognet_12m": one}).axes]
        ['unique concepts', 'units that detect a concept']
    """
    counts = {name: {c: len(u) for c, u in one.detectors().items()} for name, one in found.items()}
    totals: dict[str, int] = {}
    for own in counts.values():
        for concept, number in own.items():
            totals[concept] = totals.get(concept, 0) + number
    concepts = sorted(totals, key=lambda concept: -totals[concept])[:_MOST_CONCEPTS]
    figure = Figure((3 + 1.2 * len(found) + 0.3 * len(concepts), 4), layout="constrained")
    ratios = [1 + len(found), max(4, len(concepts))]
    left, right = figure.subplots(1, 2, width_ratios=ratios)
    colours = [f"C{i}" for i in range(len(found))]
    numbers = [one.unique_concepts for one in found.values()]
    bars = left.bar(list(found), numbers, color=colours, width=0.6)
    left.bar_label(bars)
    left.set_title("unique concepts")
    left.tick_params("x", rotation=20)
    left.yaxis.get_major_locator().set_params(integer=True)
    width = 0.8 / len(found)
    for i, (name, own) in enumerate(counts.items()):
        heights = [own.get(concept, 0) for concept in concepts]
        places = np.arange(len(concepts)) + (i - (len(found) - 1) / 2) * width
        right.bar(places, heights, width, label=name, color=colours[i])
    right.set_xticks(range(len(concepts)), concepts, rotation=60, ha="right")
    right.set_title("units that detect a concept")
    right.yaxis.get_major_locator().set_params(integer=True)
    left.margins(y=0.1)
    if len(found) > 1:
        figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    if not concepts:
        right.text(0.5, 0.5, "none", ha="center", transform=right.transAxes)
    return figure


def draw_units(
    found: Dissection, model: nn.Module, layer: nn.Module, pictures: MaskedPictures, title: str
) -> Figure:
    """The best detectors of different concepts, on the images that drive them most.

    An image is dark where the unit is off. The outline is that of the annotated concept.

    Args:
        found: of the layer, with at least one detector.
        model, layer: that were dissected.
        pictures: of the same data set.
        title: over the figure.
    """
    units = found.best_units()[:_MOST_UNITS]
    columns = found.best_images.shape[1]
    figure = Figure((2.2 * columns, 2.3 * len(units) + 0.4), layout="constrained")
    axes = figure.subplots(len(units), columns, squeeze=False)
    for row, unit in zip(axes, units):
        concept = int(found.iou[unit].argmax())
        for place, index in zip(row, found.best_images[unit]):
            picture = pictures.picture(int(index))
            maps = unit_maps(model, layer, pictures.as_input(picture))[unit, None]
            threshold = maps.new_tensor(found.thresholds[unit, None])
            size = (picture.height, picture.width)
            is_on = is_active(maps, threshold, size)[0].cpu().numpy()
            shown = np.asarray(picture) * np.where(is_on, 1, 0.35)[:, :, None]
            place.imshow(shown.astype(np.uint8))
            mask = pictures.masks(int(index), size)[concept].cpu().numpy()
            if mask.any():
                place.contour(mask, [0.5], colors="cyan", linewidths=1)
            place.set(xticks=[], yticks=[])
        iou = found.iou[unit, concept]
        row[0].set_title(f"unit {unit}: {found.concepts[concept]}\nIoU {iou:.2f}", loc="left")
    figure.suptitle(title)
    return figure
