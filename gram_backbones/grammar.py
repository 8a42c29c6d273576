"""And-Or grammar of an AOGNet block: its graph and the flat list of steps that computes it.

Source: Li, Song, Wu, "AOGNets: Compositional Grammatical Architectures for Deep Learning",
CVPR 2019, Algorithm 1 and sections 3.1 to 3.3 and 4.1. Nothing here needs torch: a graph is plain
data that can be drawn, compared or compiled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache

PRUNINGS = (None, "keep_first", "keep_last")


class NodeType(str, Enum):
    """Kind of a node (section 3.1, rules (1) to (3)).

    Examples:
        >>> [build_graph(2).count(type) for type in NodeType]  # OR, AND, T
        [3, 1, 3]
    """

    OR = "OR"
    AND = "AND"
    T = "T"


@dataclass(frozen=True)
class Node:
    """One node of an And-Or graph.

    Attributes:
        id: creation order of Algorithm 1, breadth first; the root is 0.
        type: OR (sum of alternatives), AND (concatenation) or T (slice of the input words).
        span: first and last word, inclusive, counted from 0.
        left_words: number of words of an AND-node's left part; None for the other types.
        children: ids of the syntactic children: left and right of an AND-node, by id otherwise.
        lateral: id of the node whose output is added to this node's input, or None.
        lateral_shares_parent: whether this node and its lateral node have a common syntactic
            parent; None without lateral node.
        paths_to_root: n(v) of section 4.1, paths to the root along syntactic edges only.

    Examples:
        >>> node = build_graph(2).nodes[2]
        >>> node.type.value, node.span, node.left_words, node.children
        ('AND', (0, 1), 1, (3, 4))
    """

    id: int
    type: NodeType
    span: tuple[int, int]
    left_words: int | None = None
    children: tuple[int, ...] = ()
    lateral: int | None = None
    lateral_shares_parent: bool | None = None
    paths_to_root: int = 1

    @property
    def length(self) -> int:
        """Number of words under the node."""
        return self.span[1] - self.span[0] + 1


@dataclass(frozen=True)
class Term:
    """One summand or part of a node's input: the output of node ``source`` times ``scale``.

    Examples:
        >>> sorted({term.scale for step in build_graph(3).steps() for term in step.skip_terms})
        [0.5, 1.0]
    """

    source: int
    scale: float = 1.0


@dataclass(frozen=True)
class Step:
    """How one node is computed, with all that the network has to know of the grammar.

    The node's input is the combination of ``parts`` (concatenated for AND, summed for OR, the
    slice of the block's input words for T) plus the lateral term. There are two of them, because
    nodes with several paths to the root would be counted twice (section 4.1): one feeds the
    convolutions, one the skip connection.

    Attributes:
        node: the node to compute.
        conv_parts, conv_lateral: input of the convolutions.
        skip_parts, skip_lateral: input of the skip connection.
        release: ids of the nodes whose outputs no later step reads.

    Examples:
        >>> step = build_graph(2).steps()[-1]
        >>> step.node.type.value, [term.source for term in step.conv_parts]
        ('OR', [1, 2])
    """

    node: Node
    conv_parts: tuple[Term, ...]
    conv_lateral: Term | None
    skip_parts: tuple[Term, ...]
    skip_lateral: Term | None
    release: tuple[int, ...]

    @property
    def skip_terms(self) -> tuple[Term, ...]:
        """All scaled edges into the skip connection; the λ's of section 3.2."""
        return self.skip_parts + ((self.skip_lateral,) if self.skip_lateral else ())


@dataclass(frozen=True)
class AndOrGraph:
    """And-Or graph over ``n_words`` words.

    Attributes:
        n_words: primitive size N, the number of words of a block.
        pruning: None (full), ``"keep_first"`` or ``"keep_last"`` (section 3.3).
        lateral: whether lateral connections were added.
        scale_lateral_skip: a lateral node that enters a skip connection is scaled by
            n(v)/n(lateral), as the paper writes; False leaves it unscaled, as the authors'
            published checkpoints were trained.
        concat_by_id: an AND-node concatenates its children by id, as in the authors' published
            checkpoints; False concatenates left then right, as the paper writes.
        nodes: all nodes; ``nodes[i].id == i``.

    Examples:
        >>> graph = build_graph(2)
        >>> graph.root.span  # first and last word
        (0, 1)
        >>> [(node.id, node.type.value) for node in graph.nodes]
        [(0, 'OR'), (1, 'T'), (2, 'AND'), (3, 'OR'), (4, 'OR'), (5, 'T'), (6, 'T')]
        >>> [step.node.id for step in graph.steps()]  # the root comes last
        [1, 5, 3, 6, 4, 2, 0]
    """

    n_words: int
    pruning: str | None
    lateral: bool
    scale_lateral_skip: bool
    concat_by_id: bool
    nodes: tuple[Node, ...]

    @property
    def root(self) -> Node:
        """The OR-node over the whole sentence."""
        return self.nodes[0]

    def count(self, type: NodeType | str) -> int:
        """Number of nodes of one type."""
        return sum(node.type is NodeType(type) for node in self.nodes)

    def topological_order(self) -> tuple[Node, ...]:
        """Nodes in the depth-first order of section 3.2, every node after all that it reads.

        Depth first keeps few outputs alive at a time.
        """
        order: list[Node] = []
        done: set[int] = set()
        stack = [self.root.id]
        while stack:
            node = self.nodes[stack[-1]]
            waiting = [i for i in _sources(node) if i not in done]
            if waiting:
                stack.append(waiting[0])
                continue
            stack.pop()
            done.add(node.id)
            order.append(node)
        return tuple(order)

    def steps(self) -> tuple[Step, ...]:
        """The block's computation as a flat list; the root's step is the last one."""
        order = self.topological_order()
        last_use = {i: at for at, node in enumerate(order) for i in _sources(node)}
        return tuple(
            self._step(node, tuple(i for i in sorted(_sources(node)) if last_use[i] == at))
            for at, node in enumerate(order)
        )

    def _step(self, node: Node, release: tuple[int, ...]) -> Step:
        children = node.children
        if node.type is NodeType.AND and self.concat_by_id:
            children = tuple(sorted(children))
        lateral = None if node.lateral is None else Term(node.lateral)
        skip_lateral = None
        if lateral and not node.lateral_shares_parent:
            scale = self._path_ratio(node, lateral.source) if self.scale_lateral_skip else 1.0
            skip_lateral = Term(lateral.source, scale)
        return Step(
            node=node,
            conv_parts=tuple(Term(child) for child in children),
            conv_lateral=lateral,
            skip_parts=tuple(Term(child, self._path_ratio(node, child)) for child in children),
            skip_lateral=skip_lateral,
            release=release,
        )

    def _path_ratio(self, node: Node, source: int) -> float:
        return node.paths_to_root / self.nodes[source].paths_to_root


def _sources(node: Node) -> tuple[int, ...]:
    """Ids of the nodes that a node reads; an OR-node reads its lateral node only once."""
    lateral = () if node.lateral is None else (node.lateral,)
    return tuple(dict.fromkeys(node.children + lateral))


@cache
def build_graph(
    n_words: int,
    *,
    pruning: str | None = None,
    lateral: bool = True,
    scale_lateral_skip: bool = True,
    concat_by_id: bool = False,
) -> AndOrGraph:
    """Build the And-Or graph of a block over ``n_words`` words.

    Args:
        n_words: primitive size N ≥ 1.
        pruning: None for the full structure; ``"keep_first"`` or ``"keep_last"`` drop every split
            whose left-right mirror image was kept before (section 3.3).
        lateral: add the lateral connections of the dependency grammar (section 3.1).
        scale_lateral_skip, concat_by_id: the two points where the authors' published checkpoints
            depart from the paper, see :class:`AndOrGraph`.

    Raises:
        ValueError: ``n_words`` is not a positive integer, or ``pruning`` is unknown.

    Examples:
        >>> len(build_graph(4).nodes), len(build_graph(4, pruning="keep_first").nodes)
        (30, 21)
        >>> build_graph(4).count("T")
        10
    """
    if isinstance(n_words, bool) or not isinstance(n_words, int) or n_words < 1:
        raise ValueError(f"n_words is {n_words!r}; it must be an integer of at least 1")
    if pruning not in PRUNINGS:
        raise ValueError(f"pruning is {pruning!r}; allowed are {PRUNINGS}")
    protos = _derive(n_words, pruning)
    paths = _count_paths(protos)
    laterals = _lateral_connections(protos) if lateral else {}
    parents: dict[int, set[int]] = {proto.id: set() for proto in protos}
    for proto in protos:
        for child in proto.children:
            parents[child].add(proto.id)
    nodes = tuple(
        Node(
            id=proto.id,
            type=proto.type,
            span=proto.span,
            left_words=proto.left_words,
            children=proto.children,
            lateral=laterals.get(proto.id),
            lateral_shares_parent=(
                bool(parents[proto.id] & parents[laterals[proto.id]])
                if proto.id in laterals
                else None
            ),
            paths_to_root=paths[proto.id],
        )
        for proto in protos
    )
    return AndOrGraph(n_words, pruning, lateral, scale_lateral_skip, concat_by_id, nodes)


def _derive(n_words: int, pruning: str | None) -> tuple[Node, ...]:
    """Algorithm 1 with the pruning of section 3.3: nodes and syntactic edges."""
    ids: dict[tuple, int] = {}  # in the order of creation
    keys: list[tuple] = []
    children: list[list[int]] = []
    queue: deque[int] = deque()

    def find_or_add(type: NodeType, start: int, end: int, left_words: int | None = None) -> int:
        key = (type, start, end, left_words)
        if key not in ids:
            ids[key] = len(ids)
            keys.append(key)
            children.append([])
            if type is not NodeType.T:
                queue.append(ids[key])
        return ids[key]

    find_or_add(NodeType.OR, 0, n_words - 1)
    while queue:
        at = queue.popleft()
        type, start, end, left_words = keys[at]
        if type is NodeType.OR:
            children[at].append(find_or_add(NodeType.T, start, end))
            for m in _splits(end - start + 1, pruning):
                children[at].append(find_or_add(NodeType.AND, start, end, m))
        else:
            middle = start + left_words
            children[at].append(find_or_add(NodeType.OR, start, middle - 1))
            children[at].append(find_or_add(NodeType.OR, middle, end))
    return tuple(
        Node(i, type, (start, end), left_words, tuple(children[i]))
        for i, (type, start, end, left_words) in enumerate(keys)
    )


def _splits(length: int, pruning: str | None) -> Iterator[int]:
    """Left sizes of the AND-children of an OR-node, in the order of their creation."""
    kept: set[int] = set()
    sizes = range(1, length) if pruning != "keep_last" else range(length - 1, 0, -1)
    for m in sizes:
        mirror = length - m
        if pruning and mirror != m and mirror in kept:
            continue
        kept.add(m)
        yield m


def _count_paths(nodes: tuple[Node, ...]) -> list[int]:
    """n(v) for every node: the number of syntactic paths from v to the root."""
    # Longer spans come first and an OR-node before the AND-nodes and T-nodes of its span, so every
    # parent is complete before it passes its count on.
    rank = {NodeType.OR: 0, NodeType.AND: 1, NodeType.T: 2}
    paths = [0] * len(nodes)
    paths[0] = 1
    for node in sorted(nodes, key=lambda v: (-v.length, rank[v.type])):
        for child in node.children:
            paths[child] += paths[node.id]
    return paths


def _lateral_connections(nodes: tuple[Node, ...]) -> dict[int, int]:
    """Dependency grammar of section 3.1: receiving node to sending node.

    Nodes of one type and one length form a chain: OR-nodes by start, from left to right;
    AND-nodes by (start of the right child, start), from right to left. A chain runs the other way
    where the length just before it had fewer than two nodes of the type.
    """
    laterals: dict[int, int] = {}

    def by_start(node: Node) -> tuple[int, ...]:
        return (node.span[0],)

    def by_right_child(node: Node) -> tuple[int, ...]:
        assert node.left_words is not None  # of an AND-node
        return (node.span[0] + node.left_words, node.span[0])

    rules = ((NodeType.OR, 1, by_start, False), (NodeType.AND, 2, by_right_child, True))
    for type, shortest, key, right_to_left in rules:
        before = None  # number of nodes of the length just before
        for length in range(shortest, nodes[0].length + 1):
            chain = [v for v in nodes if v.type is type and v.length == length]
            turned = before is not None and before < 2
            chain.sort(key=key, reverse=right_to_left != turned)
            laterals.update((node.id, giver.id) for giver, node in zip(chain, chain[1:]))
            before = len(chain)
    return laterals
