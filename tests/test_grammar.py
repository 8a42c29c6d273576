import subprocess
import sys

import pytest

from gram_backbones.grammar import PRUNINGS, NodeType, build_graph
from tests.conftest import load_reference

UNSEEN = (3, 5, 6, 8)


def as_record(node):
    return {
        "id": node.id,
        "type": node.type.value,
        "span": list(node.span),
        "left_words": node.left_words,
        "children": list(node.children),
        "lateral": node.lateral,
        "lateral_shares_parent": node.lateral_shares_parent,
        "paths_to_root": node.paths_to_root,
    }


def test_reference_structures_node_by_node():
    records = load_reference("structures.json")
    assert len(records) == 18
    for record in records:
        pruning = record["structure"].removeprefix("prune_")
        graph = build_graph(
            record["n_words"],
            pruning=None if pruning == "full" else pruning,
            lateral=record["lateral"],
        )
        assert [as_record(node) for node in graph.nodes] == record["nodes"]


@pytest.mark.parametrize("n", (1, 2, 3, 4, 5, 6, 8))
def test_counts_of_the_full_graph(n):
    graph = build_graph(n)
    assert graph.count("OR") == graph.count("T") == n * (n + 1) // 2
    assert graph.count("AND") == (n**3 - n) // 6


@pytest.mark.parametrize("pruning", ("keep_first", "keep_last"))
def test_figure_4(pruning):
    graph = build_graph(4, pruning=pruning)
    assert [graph.count(type) for type in ("T", "AND", "OR")] == [8, 5, 8]


def paths_by_walking(graph, node_id):
    """n(v) by following every path upwards."""
    if node_id == 0:
        return 1
    return sum(
        paths_by_walking(graph, parent.id) for parent in graph.nodes if node_id in parent.children
    )


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("n", UNSEEN)
def test_structure_of_unseen_sizes(n, pruning):
    graph = build_graph(n, pruning=pruning)
    assert [node.id for node in graph.nodes] == list(range(len(graph.nodes)))
    for node in graph.nodes:
        start, end = node.span
        kids = [graph.nodes[i] for i in node.children]
        if node.type is NodeType.T:
            assert not kids
        elif node.type is NodeType.AND:
            left, right = kids
            assert left.type is right.type is NodeType.OR
            assert left.span == (start, start + node.left_words - 1)
            assert right.span == (start + node.left_words, end)
        else:
            assert kids[0].type is NodeType.T
            assert all(kid.span == node.span for kid in kids)
            lefts = [kid.left_words for kid in kids[1:]]
            everything = set(range(1, node.length))
            assert set(lefts) | {node.length - m for m in lefts} == everything
            if pruning:
                assert len(lefts) == node.length // 2
                first = 1 if pruning == "keep_first" else node.length - 1
                assert not lefts or lefts[0] == first
            else:
                assert lefts == sorted(everything)
    if n <= 6:  # the number of paths grows too fast to walk them all beyond
        for node in graph.nodes:
            assert node.paths_to_root == paths_by_walking(graph, node.id)


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("n", UNSEEN)
def test_lateral_chains(n, pruning):
    """A chain covers all nodes of its type and length, in the spec's order and direction."""
    graph = build_graph(n, pruning=pruning)
    for type, shortest in ((NodeType.OR, 1), (NodeType.AND, 2)):
        sizes = {
            length: [v for v in graph.nodes if v.type is type and v.length == length]
            for length in range(shortest - 1, n + 1)
        }
        for length in range(shortest, n + 1):
            chain = sizes[length]
            if type is NodeType.OR:
                chain.sort(key=lambda v: v.span[0])
            else:
                chain.sort(key=lambda v: (v.span[0] + v.left_words, v.span[0]))
            rightwards = type is NodeType.OR
            if length > shortest and len(sizes[length - 1]) < 2:
                rightwards = not rightwards
            ids = [v.id for v in (chain if rightwards else reversed(chain))]
            assert [graph.nodes[i].lateral for i in ids] == [None, *ids[:-1]][: len(ids)]


def test_lateral_turns_after_a_short_chain():
    """Pruned to the first split, five words have one AND-node of three words and two of four."""
    graph = build_graph(5, pruning="keep_first")
    chains = {
        length: [v for v in graph.nodes if v.type is NodeType.AND and v.length == length]
        for length in (3, 4)
    }
    assert len(chains[3]) == 1
    left, right = sorted(chains[4], key=lambda v: (v.span[0] + v.left_words, v.span[0]))
    assert right.lateral == left.id and left.lateral is None


@pytest.mark.parametrize("options", ({}, {"scale_lateral_skip": False, "concat_by_id": True}))
@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("n", (1, 2, 3, 4, 5, 8))
def test_steps_compute_every_node_once_and_release_after_the_last_use(n, pruning, options):
    graph = build_graph(n, pruning=pruning, **options)
    alive, seen = set(), set()
    for step in graph.steps():
        reads = [*step.conv_parts, *step.skip_terms]
        reads += [step.conv_lateral] if step.conv_lateral else []
        assert {term.source for term in reads} <= alive
        assert all(term.scale == 1 for term in step.conv_parts)
        assert step.node.id not in seen
        seen.add(step.node.id)
        alive.add(step.node.id)
        assert set(step.release) <= alive - {step.node.id}
        alive -= set(step.release)
    assert seen == {node.id for node in graph.nodes}
    assert alive == {0}
    assert graph.steps()[-1].node is graph.root


def test_skip_scales_balance_the_paths():
    """Equation of section 4.1: a child enters an AND-node's skip with n(A)/n(child), OR with 1."""
    graph = build_graph(4)
    for step in graph.steps():
        for term in step.skip_parts:
            ratio = step.node.paths_to_root / graph.nodes[term.source].paths_to_root
            assert term.scale == ratio
            assert step.node.type is NodeType.AND or ratio == 1
    assert any(term.scale < 1 for step in graph.steps() for term in step.skip_parts)


def lateral_skips(graph):
    return {step.node.id: step.skip_lateral for step in graph.steps() if step.conv_lateral}


def test_switch_scale_lateral_skip():
    graphs = [
        build_graph(4, pruning="keep_first", scale_lateral_skip=flag) for flag in (True, False)
    ]
    paper, released = graphs
    for node_id, term in lateral_skips(paper).items():
        node = paper.nodes[node_id]
        if node.lateral_shares_parent:
            assert term is None
        else:
            assert term.scale == node.paths_to_root / paper.nodes[node.lateral].paths_to_root
    assert {t.scale for t in lateral_skips(released).values() if t} == {1.0}
    assert {t.scale for t in lateral_skips(paper).values() if t} != {1.0}


@pytest.mark.parametrize(
    ("pruning", "span"), (("keep_first", (1, 3)), ("keep_last", (2, 3)), (None, None))
)
def test_switch_concat_by_id(pruning, span):
    """In pruned graphs over four words the two orders differ in one AND-node."""
    paper, released = (build_graph(4, pruning=pruning, concat_by_id=f) for f in (False, True))
    pairs = zip(paper.steps(), released.steps(), strict=True)
    differing = [a.node.span for a, b in pairs if a.conv_parts != b.conv_parts]
    if span:
        assert differing == [span]
    for step in released.steps():
        if step.node.type is NodeType.AND:
            ids = [term.source for term in step.conv_parts]
            assert ids == sorted(ids) == [term.source for term in step.skip_parts]


@pytest.mark.parametrize("n", (0, -1, 2.0, True, "4"))
def test_a_bad_number_of_words_is_named(n):
    with pytest.raises(ValueError, match="n_words is"):
        build_graph(n)


def test_an_unknown_pruning_is_named():
    with pytest.raises(ValueError, match="keep_middle.*keep_first"):
        build_graph(4, pruning="keep_middle")


def test_the_grammar_needs_no_torch():
    code = "import sys; import gram_backbones.grammar; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
