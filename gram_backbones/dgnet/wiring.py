"""Which edges a stage's graph has where they are not predicted: chain, complete, random."""

from __future__ import annotations

# Probability of Erdős–Rényi, edges per node of Barabási–Albert, neighbours and rewiring
# probability of Watts–Strogatz: section 4.3, Table 4.
ER_P, BA_M, WS_K, WS_P = 0.2, 5, 4, 0.75
EDGES = ("dynamic", "static", "chain", "er", "ba", "ws")


def wired_edges(kind: str, n_blocks: int, seed: int) -> tuple[tuple[int, int], ...]:
    """Edges ``(i, j)``, i < j, over input 0, blocks 1 … n and output n + 1, sorted by (j, i).

    Random wirings are drawn over the blocks and directed from low to high index; a block without
    predecessor is fed by the input, one without successor feeds the output. M is cut to n − 1 and
    K to n where a stage is short.
    """
    n = n_blocks
    if kind in ("dynamic", "static"):
        edges = {(i, j) for j in range(1, n + 2) for i in range(j)}
    elif kind == "chain":
        edges = {(i, i + 1) for i in range(n + 1)}
    else:
        edges = _random_edges(kind, n, seed)
        fed = {j for _, j in edges}
        feeding = {i for i, _ in edges}
        edges |= {(0, j) for j in range(1, n + 1) if j not in fed}
        edges |= {(i, n + 1) for i in range(1, n + 1) if i not in feeding}
    return tuple(sorted(edges, key=lambda edge: edge[::-1]))


def _random_edges(kind: str, n: int, seed: int) -> set[tuple[int, int]]:
    if n == 1:
        return set()
    try:
        import networkx
    except ImportError as error:
        raise ImportError(f"edges={kind!r} needs networkx: pip install networkx") from error
    if kind == "er":
        graph = networkx.erdos_renyi_graph(n, ER_P, seed=seed)
    elif kind == "ba":
        graph = networkx.barabasi_albert_graph(n, min(BA_M, n - 1), seed=seed)
    else:
        graph = networkx.watts_strogatz_graph(n, min(WS_K, n), WS_P, seed=seed)
    return {(min(edge) + 1, max(edge) + 1) for edge in graph.edges}
