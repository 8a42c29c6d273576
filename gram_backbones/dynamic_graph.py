"""A stage of DG-Net: its blocks as nodes of a complete graph, edges weighted for every image.

Paper: "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks", ICLR 2021
submission, sections 3.1 to 3.5. Marked [choice]: what the paper leaves open.

A stage of n blocks has the nodes 0 (input), 1 … n (blocks) and n + 1 (output). Node j reads the sum
over i < j of weight(i, j) · x_i. The router of node i predicts the weights of all edges out of i
from the pooled x_i; every receiving node has a threshold τ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .layers import Norm, resolve_norm
from .residual_blocks import BlockParts, block_parts, require_known_parts
from .weighted_sum import weighted_sum
from .wiring import EDGES, wired_edges

GATES = ("soft", "hard")
ValidSizes = Sequence[tuple[int, int]]


class DynamicGraph(nn.Module):
    """The edges of one stage. Blocks are handed in, so that they keep the names of their network.

    Args:
        n_blocks: number n of block nodes.
        channels: channels C of the stage's feature maps.
        projection: brings the stage input to the stage's shape where the first block changes the
            shape without a shortcut of its own [choice]; None otherwise.
        edges: ``"dynamic"`` predicts weights per image; the rest has no routers: ``"static"``
            learns one weight per edge (Table 6); ``"er"``, ``"ba"`` and ``"ws"`` learn one per edge
            of a random wiring (Table 4); ``"chain"`` is the base network: weight 1 from i to i + 1.
        router_bias: initial bias of the routers (Figure 4): 3 open, 0 neutral, -3 closed. Static
            weights start at its sigmoid.
        gate: what inference takes for an open edge: ``"soft"`` ψ(α), as in training [choice], or
            ``"hard"`` α, equation (5) to the letter.
        block_shortcut: blocks keep their internal shortcuts; False leaves them to the edges, a
            reading of section 3.1 [choice].
        wiring_seed: seed of the random wirings.

    Attributes:
        feeds_others: whether the input node feeds more than the first block.
        records: a list that gets the matrix M of every forward pass, or None; see
            :func:`record_connectivity`.

    Raises:
        ValueError: an unknown ``edges`` or ``gate``.
    """

    def __init__(
        self,
        n_blocks: int,
        channels: int,
        *,
        projection: nn.Module | None = None,
        edges: str = "dynamic",
        router_bias: float = 3.0,
        gate: str = "soft",
        block_shortcut: bool = True,
        wiring_seed: int = 0,
    ):
        super().__init__()
        if edges not in EDGES:
            raise ValueError(f"edges is {edges!r}; allowed are {EDGES}")
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}; allowed are {GATES}")
        self.n_blocks = n_blocks
        self.edges = edges
        self.gate = gate
        self.block_shortcut = block_shortcut
        self.projection = projection
        self.records: list[Tensor] | None = None
        self.wiring = wired_edges(edges, n_blocks, wiring_seed)
        self.feeds_others = any(i == 0 and j > 1 for i, j in self.wiring)
        if edges == "dynamic":
            self.routers = nn.ModuleList(
                nn.Linear(channels, n_blocks + 1 - i) for i in range(n_blocks + 1)
            )
            for router in self.routers:
                nn.init.normal_(router.weight, std=0.01)
                nn.init.constant_(router.bias, router_bias)
            self.thresholds = nn.Parameter(torch.zeros(n_blocks + 1))
        elif edges != "chain":
            start = torch.tensor(float(router_bias)).sigmoid().item()
            self.edge_weights = nn.Parameter(torch.full((len(self.wiring),), start))

    def forward(
        self, x: Tensor, blocks: Sequence[nn.Module], valid_sizes: ValidSizes | None = None
    ) -> Tensor:
        """Run a stage.

        Args:
            x: stage input ``(B, C_in, H_in, W_in)``; B may be 0.
            blocks: the stage's n blocks.
            valid_sizes: per image, height and width of its unpadded part in the stage's feature
                maps; routers pool only that. None pools everything.

        Returns:
            Stage output ``(B, C, H, W)``.
        """
        parts = [block_parts(block) for block in blocks]
        if self.edges == "dynamic":
            run = _DynamicRun(self, x.shape[0], valid_sizes)
        else:
            run = _FixedRun(self, x)
        x0 = self._input_node(x, parts[0])
        features: list[Tensor | None] = [x0]
        run.route(0, x0)
        for j in range(1, self.n_blocks + 1):
            images, sources, weights = run.inputs(j)
            if not sources:
                output = None
            elif j == 1:
                output = self._first_node(x, x0, parts[0], weights, images)
            else:
                total = weighted_sum([features[i] for i in sources], weights, images)
                output = self._node(total, blocks[j - 1], parts[j - 1])
            if output is not None and images is not None:
                shape = (x.shape[0], *output.shape[1:])
                output = output.new_zeros(shape).index_copy(0, images, output)
            features.append(output)
            run.route(j, output)
        images, sources, weights = run.inputs(self.n_blocks + 1)
        if self.records is not None:
            self.records.append(run.matrix())
        return weighted_sum([features[i] for i in sources], weights, images)

    def _input_node(self, x: Tensor, first: BlockParts) -> Tensor:
        """x_0: the stage input in the stage's shape [choice]."""
        if self.projection is not None:
            return self.projection(x)
        if first.projection is None or not self.block_shortcut and not self.feeds_others:
            return x  # which may have another shape where only node 1 reads it
        return first.projection(x)

    def _first_node(
        self,
        x: Tensor,
        x0: Tensor,
        first: BlockParts,
        weights: Tensor | None,
        images: Tensor | None,
    ) -> Tensor:
        """Node 1: activation(branch(w · x) + w · x_0); the projection ran once [choice]."""
        scaled = weighted_sum([x], weights, images)
        out = first.branch(scaled)
        if first.adds_shortcut and self.block_shortcut:
            # Without a projection x_0 is x, and w · x is there already.
            same = x0 is x
            out = out + (scaled if same else weighted_sum([x0], weights, images))
        return out if first.activation is None else first.activation(out)

    def _node(self, x: Tensor, block: nn.Module, parts: BlockParts) -> Tensor:
        if self.block_shortcut or not parts.adds_shortcut:
            return block(x)
        out = parts.branch(x)
        return out if parts.activation is None else parts.activation(out)

    def open_chain(self, threshold: float, chain_bias: float, side_bias: float) -> None:
        """Set τ and the routers so that every image starts with the chain i → i + 1.

        Args:
            threshold: τ of every node.
            chain_bias: bias of the edges i → i + 1.
            side_bias: bias of all other edges.
        """
        if self.edges != "dynamic":
            raise ValueError(f"edges is {self.edges!r}; only 'dynamic' has routers to start")
        with torch.no_grad():
            self.thresholds.fill_(threshold)
            for router in self.routers:
                router.bias.fill_(side_bias)
                router.bias[0] = chain_bias


def graph_for(
    blocks: Sequence[nn.Module],
    in_channels: int,
    channels: int,
    stride: int | tuple[int, int],
    *,
    norm: Norm = "BN",
    **options,
) -> DynamicGraph:
    """The graph of a stage of given blocks.

    Args:
        blocks: the stage's blocks, in order.
        in_channels, channels: of the stage's input and output.
        stride: of the stage.
        norm: of the input node's projection, where the first block has none to share [choice].
        options: of :class:`DynamicGraph`.

    Raises:
        ValueError: unknown options, or ``block_shortcut=False`` with blocks of unknown parts.
    """
    if not options.get("block_shortcut", True):
        require_known_parts(blocks)
    first = block_parts(blocks[0])
    graph = DynamicGraph(len(blocks), channels, **options)
    changes_shape = in_channels != channels or stride not in (1, (1, 1))
    if first.projection is None and changes_shape and graph.feeds_others:
        graph.projection = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), resolve_norm(norm)(channels)
        )
        nn.init.kaiming_normal_(graph.projection[0].weight, mode="fan_out", nonlinearity="relu")
    elif first.projection is not None and not graph.feeds_others and not graph.block_shortcut:
        # Nothing reads it: as a trainable parameter it would break data parallel training.
        first.projection.requires_grad_(False)
    return graph


class _DynamicRun:
    """One forward pass of a dynamic stage: the columns of M as routers write them.

    M is kept as its columns and put together on request: rows are read while later columns are
    still to come, which autograd would not allow in one tensor written in place.
    """

    def __init__(self, graph: DynamicGraph, batch: int, valid_sizes: ValidSizes | None):
        self.graph = graph
        self.batch = batch
        self.valid_sizes = valid_sizes
        self.alphas: list[Tensor | None] = []  # (B, n + 1 - i) for node i, None if it never ran
        self.weights: list[Tensor | None] = []
        self.alive: list[Tensor | None] = []  # (B,) bool where some images do without the node
        self._images: Tensor | None = None
        # Training multiplies every edge: each router gets a gradient on every rank.
        self.prunes = not graph.training and batch > 0

    def route(self, i: int, x: Tensor | None) -> None:
        """Write column i: weights of all edges out of node i, from its pooled output (4), (5)."""
        if x is None:
            self.alphas.append(None)
            self.weights.append(None)
            return
        with torch.autocast(x.device.type, enabled=False):
            pooled = _pool(x, self.valid_sizes)
            router = self.graph.routers[i]
            dtype = torch.promote_types(pooled.dtype, router.weight.dtype)
            logits = nn.functional.linear(
                pooled.to(dtype), router.weight.to(dtype), router.bias.to(dtype)
            )
            alpha = logits.sigmoid()
            weight = self._gate(alpha, self.graph.thresholds[i:].to(dtype))
        if self._images is not None:  # only these images have the node
            missing = torch.ones(self.batch, dtype=torch.bool, device=x.device)
            missing[self._images] = False
            weight = weight.masked_fill(missing[:, None], 0)
            alpha = alpha.masked_fill(missing[:, None], -1)
        self.alphas.append(alpha)
        self.weights.append(weight)

    def _gate(self, alpha: Tensor, threshold: Tensor) -> Tensor:
        psi = alpha * torch.sigmoid(alpha - threshold)
        if not self.prunes:
            return psi
        kept = psi if self.graph.gate == "soft" else alpha
        return torch.where(alpha >= threshold, kept, 0)

    def inputs(self, j: int) -> tuple[Tensor | None, list[int], Tensor | None]:
        """Row j: the images that have the node (None: all), its sources, and their weights."""
        self._images = None
        sources = [i for i in range(j) if self.weights[i] is not None]
        row = torch.stack([self.weights[i][:, j - 1 - i] for i in sources], 1)
        if not self.prunes:
            return None, sources, row
        if j == self.graph.n_blocks + 1:
            row = self._never_empty(row, sources, j)
        opened = (row != 0).tolist()
        used = [k for k in range(len(sources)) if any(image[k] for image in opened)]
        living = [b for b, image in enumerate(opened) if any(image)]
        if j == self.graph.n_blocks + 1:
            used = used or [0]  # all weights are 0: an output of zeros
        elif len(living) < self.batch:
            self._images = torch.tensor(living, dtype=torch.long, device=row.device)
            row = row[self._images]
        if len(used) < len(sources):
            row = row[:, used]
        return self._images, [sources[k] for k in used], row

    def _never_empty(self, row: Tensor, sources: list[int], j: int) -> Tensor:
        """Where every edge into the output is closed, its strongest one stays open [choice]."""
        alphas = torch.stack([self.alphas[i][:, j - 1 - i] for i in sources], 1)
        best = alphas.argmax(1, keepdim=True)
        kept = alphas
        if self.graph.gate == "soft":
            kept = alphas * torch.sigmoid(alphas - self.graph.thresholds[j - 1].to(alphas.dtype))
        strongest = torch.zeros_like(row).scatter(1, best, kept.gather(1, best).to(row.dtype))
        row = torch.where((row != 0).any(1, keepdim=True), row, strongest)
        for k, i in enumerate(sources):
            self.weights[i] = torch.cat([self.weights[i][:, :-1], row[:, k : k + 1]], 1)
        return row

    def matrix(self) -> Tensor:
        """The buffer M, ``(B, n + 2, n + 2)``: row j holds the weights into node j."""
        size = self.graph.n_blocks + 2
        matrix = self.weights[0].new_zeros(self.batch, size, size)
        for i, weight in enumerate(self.weights):
            if weight is not None:
                matrix[:, i + 1 :, i] = weight.detach()
        return matrix


class _FixedRun:
    """One forward pass of a stage whose weights do not depend on the image."""

    def __init__(self, graph: DynamicGraph, x: Tensor):
        self.graph = graph
        self.x = x

    def route(self, i: int, x: Tensor | None) -> None:
        """No routers: nothing to write."""

    def inputs(self, j: int) -> tuple[None, list[int], Tensor | None]:
        """Sources of node j in the wiring, and their weights; None for weight 1."""
        entries = [k for k, (_, target) in enumerate(self.graph.wiring) if target == j]
        sources = [self.graph.wiring[k][0] for k in entries]
        if self.graph.edges == "chain":
            return None, sources, None
        weights = self.graph.edge_weights[entries]
        return None, sources, weights.expand(self.x.shape[0], -1)

    def matrix(self) -> Tensor:
        """The buffer M, the same for every image."""
        size = self.graph.n_blocks + 2
        matrix = torch.zeros(self.x.shape[0], size, size, device=self.x.device)
        for k, (source, target) in enumerate(self.graph.wiring):
            chain = self.graph.edges == "chain"
            matrix[:, target, source] = 1.0 if chain else self.graph.edge_weights[k].detach()
        return matrix


def _pool(x: Tensor, valid_sizes: ValidSizes | None) -> Tensor:
    """Mean over the valid part of each image, in float32 at least: ``(B, C)``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    whole = tuple(x.shape[2:])
    if valid_sizes is None or all(tuple(size) == whole for size in valid_sizes):
        return x.mean((2, 3), dtype=dtype)
    means = [x[b, :, :h, :w].mean((1, 2), dtype=dtype) for b, (h, w) in enumerate(valid_sizes)]
    return torch.stack(means)


@contextmanager
def record_connectivity(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the matrices M of every stage while the context lasts.

    Args:
        model: any module that holds dynamic stages, a whole detector for instance.

    Yields:
        For every :class:`DynamicGraph`, by its name in ``model``, a list with one tensor
        ``(B, n + 2, n + 2)`` per forward pass; row j holds the weights into node j.
    """
    graphs = {n: m for n, m in model.named_modules() if isinstance(m, DynamicGraph)}
    records: dict[str, list[Tensor]] = {name: [] for name in graphs}
    for name, graph in graphs.items():
        graph.records = records[name]
    try:
        yield records
    finally:
        for graph in graphs.values():
            graph.records = None
