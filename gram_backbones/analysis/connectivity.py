"""The connectivity of a DG-Net over a data set, and what it skips (DG-Net paper, section 6.5).

`observe` runs a network on one image after the other; `EdgeStatistics` and `SkipStatistics` keep
running sums of what it sees. None of them holds more than one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..dgnet import DGNet
from ..dgnet.connectivity import dynamic_stages
from ..dgnet.graph import dynamic_graphs, record_connectivity, training_gate
from ..dgnet.sums import ValidSizes

BINS = 100  # of a category's distribution of an edge's weight, from 0 to 1


@dataclass(frozen=True)
class Skipped:
    """What inference left out of one image.

    Attributes:
        threshold: τ of all nodes; None where every node has its own, as learned.
        edges, closed_edges: number of edges, and of those with weight 0.
        blocks, skipped_blocks: number of blocks, and of those that no open edge feeds.
        flops, skipped_flops: multiply-adds of all convolutions of the network, and of those in
            skipped blocks.
    """

    threshold: float | None
    edges: int
    closed_edges: int
    blocks: int
    skipped_blocks: int
    flops: int
    skipped_flops: int


@dataclass(frozen=True)
class Observation:
    """One image as a DG-Net connects it.

    Attributes:
        matrices: by stage, the matrix M ``(n + 2, n + 2)`` of the forward pass, float64; row j
            holds the weights into node j.
        skipped: with the learned thresholds, then with every chosen one.
    """

    matrices: Mapping[str, np.ndarray]
    skipped: tuple[Skipped, ...]


def stage_labels(model: DGNet) -> dict[str, str]:
    """What to call the dynamic stages: their feature, with a number where it has several.

    Returns:
        Labels by the stage's name in :func:`gram_backbones.record_connectivity`.

    Raises:
        ValueError: the network has no dynamic edges.

    Examples:
        >>> stage_labels(DGNet("dgnet_r18"))
        {'graphs.0': 'res2', 'graphs.1': 'res3', 'graphs.2': 'res4', 'graphs.3': 'res5'}
    """
    if not isinstance(model, DGNet) or not dynamic_stages(model):
        kind = type(model).__name__
        raise ValueError(f"the network is a {kind} without dynamic edges; only a DG-Net has them")
    features = {
        name: model.layout.stages[int(name.removeprefix("graphs."))].feature
        for name in dynamic_stages(model)
    }
    names: dict[str, list[str]] = {}
    for name, feature in features.items():
        names.setdefault(feature, []).append(name)
    return {
        name: feature if len(names[feature]) == 1 else f"{feature}.{names[feature].index(name)}"
        for name, feature in features.items()
    }


@torch.no_grad()
def observe(
    model: DGNet,
    images: Iterable[tuple[Tensor, ValidSizes | None]],
    thresholds: Sequence[float] = (),
) -> Iterator[Observation]:
    """Run a DG-Net on images one by one, and see which edges are open.

    Args:
        model: on any device; it is put into eval mode.
        images: inputs ``(1, 3, H, W)`` on the model's device, each with the unpadded size as in
            :meth:`DGNet.forward`, or None.
        thresholds: every image is run again with each of these as τ of all nodes, closing edges by
            equation (5) with any ``gate``.

    Yields:
        An observation for every image, with stages named as in :func:`stage_labels`.

    Raises:
        ValueError: the network has no dynamic edges, a threshold is outside [0, 1], or a batch has
            more than one image.

    Examples:
        >>> model = DGNet("dgnet_r18")
        >>> (seen,) = observe(model, [(torch.randn(1, 3, 64, 64), None)], thresholds=[0.99])
        >>> seen.matrices["res2"].shape
        (4, 4)
        >>> [(s.threshold, s.skipped_blocks, s.blocks) for s in seen.skipped]
        [(None, 0, 8), (0.99, 8, 8)]
    """
    labels = stage_labels(model)
    check_thresholds(thresholds)
    model.eval()
    costs: dict[tuple[int, ...], tuple[int, dict[str, list[int]]]] = {}
    for image, sizes in images:
        if len(image) != 1:
            raise ValueError(f"a batch has {len(image)} images; allowed is one")
        shape = tuple(image.shape)
        if shape not in costs:
            costs[shape] = block_flops(model, image)
        matrices = _matrices(model, image, sizes, labels)
        skipped = [_skipped(matrices, None, *costs[shape])]
        for threshold in thresholds:
            with one_threshold(model, threshold):
                found = _matrices(model, image, sizes, labels)
            skipped.append(_skipped(found, threshold, *costs[shape]))
        yield Observation(matrices, tuple(skipped))


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raise a ValueError if a threshold is outside [0, 1], where the weights of edges are."""
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; allowed are 0 to 1")


@contextmanager
def one_threshold(model: DGNet, threshold: float) -> Iterator[None]:
    """Close all edges below one threshold while the context lasts, by equation (5).

    Args:
        model: in eval mode.
        threshold: τ of all nodes.

    Examples:
        >>> model = DGNet("dgnet_r18")
        >>> with one_threshold(model, 0.5):
        ...     model.graphs["0"].thresholds
        Parameter containing:
        tensor([0.5000, 0.5000, 0.5000], requires_grad=True)
        >>> model.graphs["0"].thresholds.data
        tensor([0., 0., 0.])
    """
    graphs = [graph for graph in dynamic_graphs(model).values() if graph.edges == "dynamic"]
    before = [(graph.gate, graph.thresholds.data.clone()) for graph in graphs]
    try:
        for graph in graphs:
            graph.gate = "straight_through"  # the soft gate closes nothing
            graph.thresholds.data.fill_(threshold)
        yield
    finally:
        for graph, (gate, values) in zip(graphs, before):
            graph.gate = gate
            graph.thresholds.data.copy_(values)


def block_flops(model: DGNet, image: Tensor) -> tuple[int, dict[str, list[int]]]:
    """Multiply-adds of the convolutions of a whole DG-Net, and of each block.

    Args:
        model: in eval mode.
        image: ``(1, 3, H, W)``; its size is what matters.

    Returns:
        All of them, and by stage label those that are spared with each block. A shortcut's
        projection that the input node shares with the first block is computed in any case.

    Examples:
        >>> total, blocks = block_flops(DGNet("dgnet_r18").eval(), torch.zeros(1, 3, 224, 224))
        >>> total, blocks["res2"]
        (1813561344, [231211008, 231211008])
    """
    with torch.no_grad(), training_gate(model), FlopCounterMode(display=False) as counter:
        model(image)
    counts = {
        module: operators.get(torch.ops.aten.convolution, 0) // 2
        for module, operators in counter.get_flop_counts().items()
    }
    root = type(model).__name__
    blocks = {
        label: [counts.get(f"{root}.{b}", 0) for b in model.block_names[name.split(".")[1]]]
        for name, label in stage_labels(model).items()
    }
    return counts["Global"], blocks


class EdgeStatistics:
    """Running statistics of every edge of a stage: over all images, and over each category's.

    Args:
        categories: names; an image may belong to any number of them.

    Attributes:
        count: images, ``(1 + categories,)``; the first entry is all images, as in all arrays.
        mean, std, is_open: mean and standard deviation of the edges' weights, and the share of
            images in which they are open, ``(1 + categories, n + 2, n + 2)``, float64; row j holds
            the edges into node j. NaN for a category without images. The standard deviation is that
            of the images seen, not an estimate for others.
        histogram: distribution of the weights in ``BINS`` bins from 0 to 1,
            ``(1 + categories, n + 2, n + 2, BINS)``.

    Examples:
        >>> edges = EdgeStatistics(["cat", "dog"])
        >>> for category, weight in ((0, 0.5), (1, 0.0), (1, 1.0)):
        ...     edges.add(np.array([[0, 0], [weight, 0]]), [category])
        >>> edges.mean[:, 1, 0], edges.std[:, 1, 0].round(2), edges.is_open[:, 1, 0].round(2)
        (array([0.5, 0.5, 0.5]), array([0.41, 0.  , 0.5 ]), array([0.67, 1.  , 0.5 ]))
    """

    def __init__(self, categories: Sequence[str] = ()):
        self.categories = tuple(categories)
        self.size = 0
        self.count = np.zeros(1 + len(categories), np.int64)

    def add(self, matrix: np.ndarray, categories: Sequence[int] = ()) -> None:
        """Count an image in.

        Args:
            matrix: ``(n + 2, n + 2)``, row j holds the weights into node j.
            categories: indices of those that it belongs to.
        """
        if not self.size:
            self.size = len(matrix)
            self._edges = np.tril_indices(self.size, -1)
            shape = (len(self.count), len(self._edges[0]))
            self._mean, self._squares, self._open = np.zeros((3, *shape))
            self._bins = np.zeros((*shape, BINS), np.int32)
        weights = matrix[self._edges]
        groups = [0, *(1 + category for category in categories)]
        self.count[groups] += 1
        # Welford: sums of squares would cancel where weights hardly vary.
        before = weights - self._mean[groups]
        self._mean[groups] += before / self.count[groups, None]
        self._squares[groups] += before * (weights - self._mean[groups])
        self._open[groups] += weights != 0
        bins = np.clip((weights * BINS).astype(int), 0, BINS - 1)
        self._bins[np.ix_(groups, range(len(bins)))] += np.eye(BINS, dtype=np.int32)[bins]

    @property
    def mean(self) -> np.ndarray:  # noqa: D102
        return self._as_matrices(np.where(self._seen, self._mean, np.nan))

    @property
    def std(self) -> np.ndarray:  # noqa: D102
        return self._as_matrices(np.sqrt(self._squares / np.where(self._seen, self._seen, np.nan)))

    @property
    def is_open(self) -> np.ndarray:  # noqa: D102
        return self._as_matrices(self._open / np.where(self._seen, self._seen, np.nan))

    @property
    def histogram(self) -> np.ndarray:  # noqa: D102
        return self._as_matrices(self._bins)

    @property
    def _seen(self) -> np.ndarray:
        return self.count[:, None]

    def _as_matrices(self, edges: np.ndarray) -> np.ndarray:
        shape = (len(edges), self.size, self.size, *edges.shape[2:])
        matrices = np.zeros(shape, edges.dtype)
        matrices[:, self._edges[0], self._edges[1]] = edges
        return matrices

    def rows(self) -> Iterator[dict[str, object]]:
        """A table: source, target, category, images, mean, std and share open of every edge.

        The category of all images is empty; categories without images are left out.
        """
        mean, std, is_open = self.mean, self.std, self.is_open
        for group, category in enumerate(("", *self.categories)):
            if not self.count[group]:
                continue
            for target, source in np.transpose(self._edges).tolist():
                place = (group, target, source)
                yield {
                    "source": node_name(source, self.size),
                    "target": node_name(target, self.size),
                    "category": category,
                    "images": int(self.count[group]),
                    "mean": float(mean[place]),
                    "std": float(std[place]),
                    "open": float(is_open[place]),
                }


class SkipStatistics:
    """What inference leaves out over all images, for every threshold.

    Attributes:
        skipped_blocks: number of images by number of skipped blocks, ``(thresholds, blocks + 1)``.

    Examples:
        >>> statistics = SkipStatistics()
        >>> for skipped in (0, 3):
        ...     statistics.add([Skipped(None, 6, 2, 4, skipped, 1000, 100 * skipped)])
        >>> statistics.rows()[0]["mean_flops_skipped"], statistics.skipped_blocks
        (0.15, array([[1, 0, 0, 1, 0]]))
    """

    def __init__(self) -> None:
        self.images = 0
        self.thresholds: tuple[float | None, ...] = ()

    def add(self, skipped: Sequence[Skipped]) -> None:
        """Count an image in: what was left out of it with every threshold, always the same ones."""
        if not self.images:
            self.thresholds = tuple(row.threshold for row in skipped)
            self._edges, self._blocks = skipped[0].edges, skipped[0].blocks
            self._closed, self._flops = np.zeros((2, len(skipped)))
            self._least, self._most = np.ones(len(skipped)), np.zeros(len(skipped))
            self.skipped_blocks = np.zeros((len(skipped), self._blocks + 1), np.int64)
        self.images += 1
        shares = np.array([row.skipped_flops / row.flops for row in skipped])
        self._closed += [row.closed_edges for row in skipped]
        self._flops += shares
        self._least = np.minimum(self._least, shares)
        self._most = np.maximum(self._most, shares)
        self.skipped_blocks[range(len(skipped)), [row.skipped_blocks for row in skipped]] += 1

    def rows(self) -> list[dict[str, Any]]:
        """A table: what images skip on average with every threshold, and the extremes of FLOPs.

        FLOPs are shares of the image's own.
        """
        blocks = self.skipped_blocks @ np.arange(self._blocks + 1) / self.images
        return [
            {
                "threshold": "learned" if threshold is None else threshold,
                "images": self.images,
                "mean_edges_closed": float(self._closed[i] / self.images),
                "edges": self._edges,
                "mean_blocks_skipped": float(blocks[i]),
                "blocks": self._blocks,
                "mean_flops_skipped": float(self._flops[i] / self.images),
                "least_flops_skipped": float(self._least[i]),
                "most_flops_skipped": float(self._most[i]),
            }
            for i, threshold in enumerate(self.thresholds)
        ]


def node_name(node: int, size: int) -> str:
    """``in`` for node 0, ``out`` for the last of ``size`` nodes, the block's number otherwise.

    Examples:
        >>> [node_name(node, 4) for node in range(4)]
        ['in', '1', '2', 'out']
    """
    return "in" if node == 0 else "out" if node == size - 1 else str(node)


def _matrices(
    model: DGNet, image: Tensor, sizes: ValidSizes | None, labels: Mapping[str, str]
) -> dict[str, np.ndarray]:
    with record_connectivity(model) as records:
        model(image, valid_sizes=sizes)
    return {label: records[name][0][0].double().cpu().numpy() for name, label in labels.items()}


def _skipped(
    matrices: Mapping[str, np.ndarray],
    threshold: float | None,
    flops: int,
    blocks: Mapping[str, Sequence[int]],
) -> Skipped:
    fed: dict[str, np.ndarray] = {
        stage: np.asarray(matrix[1:-1].any(1)) for stage, matrix in matrices.items()
    }
    edges = sum(len(matrix) * (len(matrix) - 1) // 2 for matrix in matrices.values())
    return Skipped(
        threshold=threshold,
        edges=edges,
        closed_edges=edges - sum(int(np.count_nonzero(m)) for m in matrices.values()),
        blocks=sum(len(is_fed) for is_fed in fed.values()),
        skipped_blocks=sum(int((~is_fed).sum()) for is_fed in fed.values()),
        flops=flops,
        skipped_flops=sum(int(np.dot(~fed[stage], blocks[stage])) for stage in fed),
    )
