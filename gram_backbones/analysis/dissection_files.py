"""The tables and figures that dissections are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .dissection import Dissection
from .dissection_figures import draw_concepts
from .figures import Figure, save
from .tables import write_csv


def network_labels(models: Sequence[str], layers: Sequence[str]) -> list[str]:
    """A name for each dissected network, which can be part of a file's name.

    Examples:
        >>> network_labels(["aognet_12m", "dgnet_r50"], ["res5", "res5"])
        ['aognet_12m', 'dgnet_r50']
        >>> network_labels(["aognet_12m", "aognet_12m", "dgnet_r50"], ["res4", "res5", "res5"])
        ['aognet_12m-res4', 'aognet_12m-res5', 'dgnet_r50-res5']
        >>> network_labels(["dgnet_r50", "dgnet_r50"], ["res5", "res5"])
        ['dgnet_r50-res5-1', 'dgnet_r50-res5-2']
    """
    names = [*models] if len({*layers}) == 1 else [f"{m}-{x}" for m, x in zip(models, layers)]
    if len({*names}) < len(names):
        names = [f"{m}-{x}" for m, x in zip(models, layers)]
    if len({*names}) < len(names):
        names = [f"{name}-{i}" for i, name in enumerate(names, 1)]
    return names


def network_rows(found: Mapping[str, Dissection]) -> list[dict[str, Any]]:
    """A row per network: its units, those that detect a concept, and the unique concepts.

    Examples:
        >>> import numpy as np
        >>> iou = np.array([[0.1, 0.0], [0.2, 0.0], [0.0, 0.01]])
        >>> one = Dissection(("cat", "dog"), np.zeros(3), np.zeros(3), iou, np.zeros((3, 1)))
        >>> network_rows({"aognet_12m": one})
        [{'network': 'aognet_12m', 'units': 3, 'detectors': 2, 'unique_concepts': 1}]
    """
    return [
        {
            "network": name,
            "units": len(one.iou),
            "detectors": sum(map(len, one.detectors().values())),
            "unique_concepts": one.unique_concepts,
        }
        for name, one in found.items()
    ]


def unit_rows(name: str, found: Dissection) -> list[dict[str, Any]]:
    """A row per unit: the concept with the largest IoU, and whether the unit detects it."""
    best = found.iou.argmax(1)
    return [
        {
            "network": name,
            "unit": unit,
            "concept": found.concepts[concept],
            "iou": float(found.iou[unit, concept]),
            "detects": bool(found.iou[unit, concept] > found.min_iou),
            "threshold": float(found.thresholds[unit]),
            "share_above": float(found.reached[unit]),
        }
        for unit, concept in enumerate(best)
    ]


def write_dissections(
    folder: str | Path, found: Mapping[str, tuple[Dissection, Figure | None]]
) -> str:
    """Write tables and figures of one or more networks.

    Args:
        folder: where to write; it is made.
        found: by the name of the network, its dissection and the picture of its best units.

    Returns:
        The table of the networks, in Markdown.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dissections = {name: one for name, (one, _) in found.items()}
    rows = network_rows(dissections)
    write_csv(folder / "networks.csv", rows)
    write_csv(
        folder / "units.csv", [r for n, one in dissections.items() for r in unit_rows(n, one)]
    )
    save(draw_concepts(dissections), folder / "concepts.png")
    for name, (_, drawn) in found.items():
        if drawn is not None:
            save(drawn, folder / f"units-{name.replace('/', '_')}.png")
    lines = ["| network | units | detectors | unique concepts |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    return "\n".join(lines)
