"""Where the nodes and edges of a grammar's graph are drawn: plain geometry, without matplotlib.

All nodes of one span stand in one box: the OR-node above, below it the alternatives that it sums,
its T-node and its AND-nodes. Boxes of spans with equally many words are a level, with single words
at the bottom and the root at the top, as in Figures 1 and 4 of the AOGNet paper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..grammar import AndOrGraph, Node, NodeType, build_graph

SLOT = 0.6  # inches between neighbours
GAP = 0.2  # inches between boxes of a level
RISE = 0.62  # inches from the alternatives of a span to its OR-node
PAD = 0.3  # inches from a node's centre to the box around it
TITLE = 0.2  # inches above the OR-node for the box's title
LEVEL = 1.7  # inches from one level to the next
CLEARANCE = 0.29  # inches that an edge keeps from the centres of nodes it passes
NARROWEST = 1.14  # inches of a box, for its title


@dataclass(frozen=True)
class PlacedNode:
    """A node and its centre.

    Attributes:
        node: of the graph; if pruned, of the full graph.
        pruned: whether pruning removed it.
        x, y: inches from the lower left corner.
    """

    node: Node
    pruned: bool
    x: float
    y: float


@dataclass(frozen=True)
class PlacedEdge:
    """An edge in the direction in which features flow.

    Attributes:
        source, target: the nodes, which know their places.
        lateral: whether it is a lateral connection and not a syntactic edge.
        bend: how far it curves to the right of its way, as a share of its length; 0 is straight.
    """

    source: PlacedNode
    target: PlacedNode
    lateral: bool = False
    bend: float = 0.0

    @property
    def pruned(self) -> bool:
        """Whether pruning removed it, with at least one of its nodes."""
        return self.source.pruned or self.target.pruned


@dataclass(frozen=True)
class SpanBox:
    """The box around all nodes of a span.

    Attributes:
        span: first and last word, inclusive.
        paths_to_root: n(v), which all nodes of a span share; None if pruning removed the span.
        x, y, width, height: in inches, from the lower left corner.
    """

    span: tuple[int, int]
    paths_to_root: int | None
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """A drawn graph.

    Attributes:
        nodes: kept nodes by id, then what pruning removed.
        edges: syntactic edges, then lateral ones.
        boxes: of all spans, short ones first.
        width, height: in inches.
    """

    nodes: tuple[PlacedNode, ...]
    edges: tuple[PlacedEdge, ...]
    boxes: tuple[SpanBox, ...]
    width: float
    height: float


def lay_out(graph: AndOrGraph, *, show_pruned: bool = True) -> Layout:
    """Place every node, edge and span of a graph.

    Args:
        graph: of a block.
        show_pruned: also place what pruning removed from the full graph.

    Examples:
        >>> layout = lay_out(build_graph(4, pruning="keep_first"))
        >>> [sum(node.pruned == pruned for node in layout.nodes) for pruned in (False, True)]
        [21, 9]
        >>> top = max(layout.nodes, key=lambda node: node.y)
        >>> top.node.id, top.node.span
        (0, (0, 3))
    """
    full = build_graph(graph.n_words, lateral=False) if show_pruned and graph.pruning else graph
    kept = {_key(node): node for node in graph.nodes}
    rows: dict[tuple[int, int], list[Node]] = defaultdict(list)  # alternatives of every span
    for node in full.nodes:
        if node.type is not NodeType.OR:
            rows[node.span].append(kept.get(_key(node), node))
    width, centres = _centres(graph.n_words, rows)
    places: dict[tuple, PlacedNode] = {}
    boxes = []
    for node in sorted(full.nodes, key=lambda v: (v.length, v.span)):
        if node.type is not NodeType.OR:
            continue
        alternatives = sorted(rows[node.span], key=lambda v: v.left_words or 0)
        x, y = centres[node.span], PAD + (node.length - 1) * LEVEL
        known = kept.get(_key(node))
        places[_key(node)] = PlacedNode(known or node, known is None, x, y + RISE)
        for index, child in enumerate(alternatives):
            at = x + (index - (len(alternatives) - 1) / 2) * SLOT
            places[_key(child)] = PlacedNode(child, _key(child) not in kept, at, y)
        wide = _box_width(alternatives)
        paths = known.paths_to_root if known else None
        box = (x - wide / 2, y - PAD, wide, RISE + 2 * PAD + TITLE)
        boxes.append(SpanBox(node.span, paths, *box))
    order = sorted(places.values(), key=lambda place: (place.pruned, place.node.id))
    height = max(box.y + box.height for box in boxes)
    edges = _edges(graph, full, places, width)
    return Layout(tuple(order), edges, tuple(boxes), width, height)


def _key(node: Node) -> tuple:
    """What identifies a node in the pruned and in the full graph."""
    return node.type, node.span, node.left_words


def _box_width(alternatives: Sequence[Node]) -> float:
    return max(NARROWEST, (len(alternatives) - 1) * SLOT + 2 * PAD)


def _centres(
    n_words: int, rows: Mapping[tuple[int, int], list[Node]]
) -> tuple[float, dict[tuple[int, int], float]]:
    """The width of the drawing, and x of every span's box.

    A level spreads over the words that it covers, or as far as its boxes need.
    """
    wide: dict[int, float] = defaultdict(float)  # box and gap, by number of words
    for (start, end), nodes in rows.items():
        length = end - start + 1
        wide[length] = max(wide[length], _box_width(nodes) + GAP)
    width = max((n_words - length + 1) * size for length, size in wide.items())
    centres = {}
    for start, end in rows:
        length = end - start + 1
        step = max(width / n_words, wide[length])
        centres[start, end] = width / 2 + (start - (n_words - length) / 2) * step
    return width, centres


def _edges(
    graph: AndOrGraph, full: AndOrGraph, places: Mapping[tuple, PlacedNode], width: float
) -> tuple[PlacedEdge, ...]:
    def place(node: Node) -> PlacedNode:
        return places[_key(node)]

    pairs = [(place(full.nodes[i]), place(node)) for node in full.nodes for i in node.children]
    edges = [PlacedEdge(*pair, bend=_free_bend(*pair, places.values(), width)) for pair in pairs]
    for node in graph.nodes:
        if node.lateral is not None:
            source, target = place(graph.nodes[node.lateral]), place(node)
            bend = 0.0
            if node.type is NodeType.AND:  # below the AND-nodes between the two
                bend = 0.35 if target.x > source.x else -0.35
            edges.append(PlacedEdge(source, target, lateral=True, bend=bend))
    return tuple(edges)


def _free_bend(
    source: PlacedNode, target: PlacedNode, places: Iterable[PlacedNode], width: float
) -> float:
    """The smallest bend with which an edge passes all other nodes, or else the best one."""
    start, end = (np.array((place.x, place.y)) for place in (source, target))
    others = np.array([(p.x, p.y) for p in places if p not in (source, target)]).reshape(-1, 2)
    along = np.linspace(0, 1, 41)[:, None]
    (dx, dy), middle = end - start, (start + end) / 2
    found: dict[float, float] = {}
    for bend in (0, -0.06, 0.06, -0.12, 0.12, -0.18, 0.18, -0.24, 0.24):
        control = middle + bend * np.array((dy, -dx))  # as matplotlib's arc3
        curve = start * (1 - along) ** 2 + control * 2 * along * (1 - along) + end * along**2
        if curve[:, 0].min() < 0 or curve[:, 0].max() > width:
            continue
        distances = np.linalg.norm(curve[:, None] - others[None], axis=-1)
        found[bend] = float(distances.min(initial=np.inf))
        if found[bend] >= CLEARANCE:
            return bend
    return max(found, key=lambda bend: found[bend])
