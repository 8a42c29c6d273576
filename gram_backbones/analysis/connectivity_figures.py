"""Figures of a DG-Net's connectivity, like Figures 5 to 7 of its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .connectivity import BINS, EdgeStatistics, SkipStatistics, node_name
from .figures import Figure, LinearSegmentedColormap, Normalize, ScalarMappable

try:
    import networkx
except ImportError as error:
    raise ImportError(
        f"graphs are drawn by networkx, which cannot be imported ({error}): "
        "pip install gram-backbones[analysis]"
    ) from error

_MOST_CATEGORIES = 40  # rows that can be read
_MOST_WRITTEN = 8  # nodes up to which a matrix has its numbers in it
_WEIGHTS = "Blues"  # darker is larger, as in the paper


def draw_matrices(
    matrices: Mapping[str, np.ndarray], title: str, most: float | None = None
) -> Figure:
    """One number of every edge, a matrix per stage: Figure 5 for means, 6 for deviations.

    Args:
        matrices: by stage ``(n + 2, n + 2)``; row j holds the edges into node j.
        title: says what the numbers are.
        most: end of the scale of colours; the largest number by default.

    Examples:
        >>> len(draw_matrices({"res2": np.eye(5), "res3": np.eye(6)}, "mean").axes)
        3
    """
    figure = Figure((3.2 * len(matrices) + 1, 3.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    most = most or max(float(m[np.tril_indices(len(m), -1)].max()) for m in matrices.values())
    for place, (stage, matrix) in zip(axes, matrices.items()):
        size = len(matrix)
        is_edge = np.tri(size, k=-1, dtype=bool)[1:, :-1]
        shown = np.where(is_edge, matrix[1:, :-1], np.nan)
        image = place.imshow(shown, cmap=_WEIGHTS, vmin=0, vmax=most or 1)
        names = [node_name(node, size) for node in range(size)]
        step = 1 if size <= 13 else 2
        place.set_xticks(range(0, size - 1, step), names[:-1:step])
        place.set_yticks(range(0, size - 1, step), names[1::step])
        place.set(title=stage, xlabel="from node")
        if size <= _MOST_WRITTEN:
            for target, source in zip(*np.nonzero(is_edge)):
                value = shown[target, source]
                colour = "white" if value > 0.6 * most else "black"
                style = dict(ha="center", va="center", fontsize=9, color=colour)
                place.text(
                    source, target, f"{value:.2g}" if value < 0.01 else f"{value:.2f}", style
                )
    axes[0].set_ylabel("into node")
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(title)
    return figure


def draw_categories(statistics: EdgeStatistics, stage: str) -> Figure:
    """How the edges of a stage differ between categories.

    On the left, how far each category's mean weight of an edge is from that of all images. Then,
    for the three edges that differ most, the distribution over the images of each category: median,
    quartiles, and the range of 90 % of the images, read from a histogram of `BINS` bins. Of more
    than 40 categories, those with the most images are drawn.

    Args:
        statistics: of the stage, with at least one category that has images.
        stage: its name, for the title.

    Examples:
        >>> edges = EdgeStatistics(["cat", "dog"])
        >>> for category in (0, 1):
        ...     edges.add(np.tril(np.full((4, 4), 0.3 + 0.2 * category), -1), [category])
        >>> [axes.get_title() for axes in draw_categories(edges, "res2").axes][1:4]
        ['in → 1', 'in → 2', '1 → 2']
    """
    seen = np.flatnonzero(statistics.count[1:]) + 1
    most_images = np.argsort(-statistics.count[seen], kind="stable")[:_MOST_CATEGORIES]
    groups = np.sort(seen[most_images])
    labels = [f"{statistics.categories[g - 1]} ({statistics.count[g]})" for g in groups]
    targets, sources = np.tril_indices(statistics.size, -1)
    means = statistics.mean[:, targets, sources]
    differences = means[groups] - means[0]
    largest = np.argsort(-differences.std(0), kind="stable")[:3]
    names = [
        f"{node_name(i, statistics.size)} → {node_name(j, statistics.size)}"
        for i, j in zip(sources.tolist(), targets.tolist())
    ]
    height = 2.2 + 0.22 * len(groups)
    width = min(6, 1.5 + 0.3 * len(names))
    figure = Figure((width + 2.5 * len(largest) + 2, height), layout="constrained")
    ratios = [width, *[2.2] * len(largest)]
    axes = figure.subplots(1, 1 + len(largest), sharey=True, width_ratios=ratios)
    end = np.abs(differences).max() or 1
    image = axes[0].imshow(differences, cmap="RdBu_r", vmin=-end, vmax=end, aspect="auto")
    if len(names) <= 30:
        axes[0].set_xticks(range(len(names)), names, rotation=90)
    else:
        axes[0].set_xlabel(f"the {len(names)} edges, by the node they lead into")
    axes[0].set_yticks(range(len(groups)), labels)
    axes[0].set_title("mean weight − mean of all images")
    figure.colorbar(
        image, ax=axes[0], location="bottom", shrink=0.8, ticks=[-end, 0, end], format="%.2g"
    )
    histogram = statistics.histogram[:, targets, sources]
    for place, edge in zip(axes[1:], largest):
        boxes = [_box(histogram[group, edge]) for group in groups]
        place.bxp(boxes, range(len(groups)), orientation="horizontal", showfliers=False, widths=0.6)
        place.axvline(means[0, edge], color="tab:red", linewidth=1)
        place.set(title=names[edge], xlabel="weight", yticks=range(len(groups)))
        place.set_yticklabels(labels)
        low, high = place.get_xlim()
        room = max(0, 10 / BINS - (high - low)) / 2  # no view into single bins
        place.set_xlim(low - room, high + room)
    dropped = len(seen) - len(groups)
    more = f"; {dropped} categories with fewer images are not drawn" if dropped else ""
    figure.suptitle(f"{stage}: edges by category (number of images){more}; red: mean of all")
    return figure


def _box(counts: np.ndarray) -> dict[str, float]:
    """Quantiles from a histogram, to the middle of a bin."""
    share = np.cumsum(counts) / counts.sum()
    marks = {"whislo": 0.05, "q1": 0.25, "med": 0.5, "q3": 0.75, "whishi": 0.95}
    return {
        name: (int(np.searchsorted(share, mark - 1e-9)) + 0.5) / BINS
        for name, mark in marks.items()
    }


def draw_graphs(picture: np.ndarray, matrices: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """An image and the graphs of its stages, as in Figure 7.

    Nodes stand from the input above to the output below. Darker and wider edges weigh more, closed
    edges are not drawn, and a block that no open edge feeds is hollow: inference leaves it out.

    Args:
        picture: the image, RGB, ``(H, W, 3)``.
        matrices: by stage ``(n + 2, n + 2)``; row j holds the weights into node j.
        title: over the image.

    Examples:
        >>> matrix = np.tril(np.full((4, 4), 0.5), -1)
        >>> figure = draw_graphs(np.zeros((64, 64, 3), np.uint8), {"res2": matrix})
        >>> [axes.get_title() for axes in figure.axes]
        ['', 'res2', 'weight']
    """
    deepest = max(map(len, matrices.values()))
    height = max(4.0, 0.42 * deepest)
    width = max(2.0, 0.36 * height)  # arcs are as wide as they are long, and would be cut off
    figure = Figure((4 + width * len(matrices), height), layout="constrained")
    ratios = [2.2, *[1] * len(matrices)]
    left, *axes = figure.subplots(1, 1 + len(matrices), width_ratios=ratios)
    left.imshow(picture)
    left.set_title(title)
    left.axis("off")
    for place, (stage, matrix) in zip(axes, matrices.items()):
        place.set_title(stage)
        drawn = _draw_graph(place, matrix)
    scale = figure.colorbar(drawn, ax=axes, shrink=0.7)
    scale.ax.set_title("weight", fontsize=9)
    return figure


def _draw_graph(axes: Any, matrix: np.ndarray) -> ScalarMappable:
    """One stage; returns what a scale of colours is made from."""
    size = len(matrix)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(size))
    place = {node: (0.0, -float(node)) for node in range(size)}
    labels = {node: node_name(node, size) for node in range(size)}
    is_fed = [node in (0, size - 1) or bool(matrix[node].any()) for node in range(size)]
    colours = LinearSegmentedColormap.from_list("weights", ["#d6e4f2", "#08306b"])
    norm = Normalize(0, 1)
    edges = sorted(zip(*np.nonzero(matrix)), key=lambda edge: matrix[edge])  # strong ones on top
    for is_near, bow in ((False, 0.45), (True, 0.0)):
        chosen = [(j, i) for j, i in edges if (j - i == 1) == is_near]
        networkx.draw_networkx_edges(
            graph,
            place,
            [(i, j) for j, i in chosen],
            ax=axes,
            width=[0.5 + 2.5 * matrix[edge] for edge in chosen],
            edge_color=[colours(norm(matrix[edge])) for edge in chosen],
            connectionstyle=f"arc3,rad={bow}",
            arrowsize=8,
            node_size=260,
        )
    style = dict(ax=axes, node_size=260, edgecolors="black")
    fills = ["#ffe9b8" if fed else "white" for fed in is_fed]
    networkx.draw_networkx_nodes(graph, place, node_color=fills, **style)
    networkx.draw_networkx_labels(graph, place, labels, ax=axes, font_size=8)
    axes.set_xlim(-0.28 * size - 0.3, 0.6)
    axes.set_ylim(-size + 0.4, 0.6)
    axes.axis("off")
    return ScalarMappable(norm, colours)


def draw_skipped(statistics: SkipStatistics) -> Figure:
    """How many blocks and FLOPs of single images inference leaves out, per threshold.

    Args:
        statistics: of at least one image.

    Examples:
        >>> from gram_backbones.analysis.connectivity import Skipped
        >>> statistics = SkipStatistics()
        >>> statistics.add([Skipped(None, 6, 2, 8, 1, 1000, 100)])
        >>> [axes.get_title() for axes in draw_skipped(statistics).axes][:2]
        ['skipped blocks', 'skipped FLOPs']
    """
    rows = statistics.rows()
    names = [
        "learned" if row["threshold"] == "learned" else f"{row['threshold']:g}" for row in rows
    ]
    figure = Figure((10, 1.8 + 0.4 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shares = 100 * statistics.skipped_blocks / rows[0]["images"]
    image = left.imshow(shares, cmap=_WEIGHTS, vmin=0, vmax=100, aspect="auto")
    for place in zip(*np.nonzero(shares)):
        colour = "white" if shares[place] > 60 else "black"
        style = dict(ha="center", va="center", fontsize=8, color=colour)
        left.text(*place[::-1], f"{shares[place]:.0f}", style)
    left.set_yticks(range(len(rows)), names)
    left.set(title="skipped blocks", ylabel="threshold", xlabel="number of skipped blocks")
    figure.colorbar(image, ax=left, label="% of the images")
    mean, least, most = (
        np.array([100 * row[f"{name}_flops_skipped"] for row in rows])
        for name in ("mean", "least", "most")
    )
    spread = np.maximum([mean - least, most - mean], 0)  # rounding of the mean may be below
    right.errorbar(mean, range(len(rows)), xerr=spread, fmt="o", capsize=4)
    right.set(title="skipped FLOPs", xlabel="% of an image's: mean, least and most", xlim=(-2, 102))
    right.grid(axis="x", alpha=0.3)
    return figure
