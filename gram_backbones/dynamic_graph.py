"""A stage of DG-Net: its blocks as nodes of a complete graph, edges weighted for every image.

Paper: "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks", ICLR 2021
submission, sections 3.1 to 3.5. Marked [choice]: what the paper leaves open.

A stage of n blocks has the nodes 0 (input), 1 … n (blocks) and n + 1 (output). Node j reads the sum
over i < j of weight(i, j) · x_i. The router of node i predicts the weights of all edges out of i
from the pooled x_i; every receiving node has a threshold τ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import Norm, recompute, resolve_norm
from .memory_bound import Weights, add_activate_pool, borrowed_maps, weighted_sum
from .residual_blocks import BlockParts, block_parts, require_known_parts
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
        with_cp: recompute the activations inside each block in the backward pass to save memory.

    Attributes:
        feeds_others: whether the input node feeds more than the first block.
        records: lists that get the matrix M of every forward pass; see
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
        with_cp: bool = False,
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
        self.with_cp = with_cp
        self.projection = projection
        self.records: list[list[Tensor]] = []
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
            start = torch.tensor(float(router_bias), device="cpu").sigmoid().item()
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

        Raises:
            ValueError: another number of ``valid_sizes`` than images.
        """
        if valid_sizes is not None and len(valid_sizes) != len(x):
            raise ValueError(f"valid_sizes has {len(valid_sizes)} entries for {len(x)} images")
        parts = [block_parts(block) for block in blocks]
        if self.with_cp and self.training:
            branches = [partial(recompute, block, run=p.branch) for block, p in zip(blocks, parts)]
            parts = [replace(p, branch=branch) for p, branch in zip(parts, branches)]
        if self.edges == "dynamic":
            run = _DynamicRun(self, x, valid_sizes)
        else:
            run = _FixedRun(self, x)
        x0 = self._input_node(x, parts[0])
        if not run.as_numbers:
            return self._run_nodes(run, x, x0, parts, None)
        with borrowed_maps(x0, self.n_blocks) as maps:
            return self._run_nodes(run, x, x0, parts, maps)

    def _run_nodes(
        self,
        run: _DynamicRun | _FixedRun,
        x: Tensor,
        x0: Tensor,
        parts: list[BlockParts],
        maps: Tensor | None,
    ) -> Tensor:
        """All nodes in order; ``maps`` is memory for their outputs, one after the other."""
        n = self.n_blocks
        scratch: Tensor | None = None
        features: list[Tensor | None] = [x0]
        run.route(0, x0)
        for j in range(1, n + 1):
            images, sources, weights = run.inputs(j)
            target = maps[j - 1] if maps is not None and images is None else None
            done = _Computed(None, spare=scratch)
            if sources and j == 1:
                # The other nodes' memory is free still; a stage input may be larger than a map.
                room = None if maps is None else maps[1:].flatten()
                fits = room is not None and room.numel() >= x.numel() and parts[0].known
                scratch = room[: x.numel()].view(x.shape) if fits else None
                done = self._first_node(x, x0, parts[0], weights, images, target, scratch)
            elif sources:
                total = weighted_sum([features[i] for i in sources], weights, images, scratch)
                done = self._node(total, parts[j - 1], target)
            output, pooled, scratch = done
            if output is not None and images is not None:
                shape = (x.shape[0], *output.shape[1:])
                output, pooled = output.new_zeros(shape).index_copy(0, images, output), None
            features.append(output)
            run.route(j, output, pooled)
        images, sources, weights = run.inputs(n + 1)
        if self.records:
            matrix = run.matrix()
            for record in self.records:
                record.append(matrix)
        return weighted_sum([features[i] for i in sources], weights, images, scratch)

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
        weights: Weights,
        images: Tensor | None,
        target: Tensor | None,
        scratch: Tensor | None,
    ) -> _Computed:
        """Node 1: activation(branch(w · x) + w · x_0); the projection ran once [choice]."""
        scaled = weighted_sum([x], weights, images, scratch)
        out = first.branch(scaled)
        if not first.adds_shortcut or not self.block_shortcut:
            return _finish(scaled, out, None, None, first, None)
        if x0 is x:  # without a projection, w · x is there already
            return _finish(scaled, out, scaled, None, first, target)
        shortcut = x0 if images is None else x0[images]
        return _finish(scaled, out, shortcut, weights, first, target)

    def _node(self, x: Tensor, parts: BlockParts, target: Tensor | None) -> _Computed:
        """Node j > 1 on its summed input."""
        shortcut = x if self.block_shortcut and parts.adds_shortcut else None
        if parts.projection is not None and shortcut is not None:
            shortcut = parts.projection(shortcut)
        return _finish(x, parts.branch(x), shortcut, None, parts, target)

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


class _Sigmoid(torch.autograd.Function):
    """Sigmoid whose derivative does not round to 0 where α rounds to 1.

    dα/dz = α(1 − α) is computed as σ(z) σ(−z): features of deep stages are large, and float32 has
    α = 1 from z = 17 on, where the router would never learn again.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sigmoid()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * z.sigmoid() * (-z).sigmoid()


class _Computed(NamedTuple):
    """A node's output, its mean where that came for free, and memory that is free again."""

    output: Tensor | None
    pooled: Tensor | None = None
    spare: Tensor | None = None


def _finish(
    given: Tensor,
    out: Tensor,
    shortcut: Tensor | None,
    weights: Weights,
    parts: BlockParts,
    target: Tensor | None,
) -> _Computed:
    """activation(out + weights · shortcut), where ``out`` is the branch of ``given``.

    ``target`` is memory for the result, in CPU inference only.
    """
    if target is not None and shortcut is not None and isinstance(parts.activation, nn.ReLU):
        same = all(t.is_contiguous() and t.dtype == target.dtype for t in (out, shortcut))
        if same and out.shape == target.shape and target.dtype.itemsize >= 4:
            # A branch may hand its input on: that memory is not ours to give away.
            taken = {t.untyped_storage().data_ptr() for t in (given, shortcut, target)}
            spare = None if out.untyped_storage().data_ptr() in taken else out
            return _Computed(*add_activate_pool(out, shortcut, weights, target), spare=spare)
    if shortcut is not None and weights is not None:
        factors = torch.as_tensor(weights, dtype=out.dtype, device=out.device)
        out = torch.addcmul(out, shortcut, factors[:, :, None, None])
    elif shortcut is not None:
        out = out + shortcut
    return _Computed(out if parts.activation is None else parts.activation(out))


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

    def __init__(self, graph: DynamicGraph, x: Tensor, valid_sizes: ValidSizes | None):
        self.graph = graph
        self.batch = x.shape[0]
        self.valid_sizes = valid_sizes
        # Column i is (B, n + 1 - i), the edges out of node i; None if no image has the node.
        self.alphas: list[Tensor | None] = []
        self.weights: list[Tensor | None] = []
        # The same weights as numbers, to see which edges are open: inference only.
        self.numbers: list[list[list[float]] | None] = []
        self._images: Tensor | None = None
        # Training multiplies every edge: each router gets a gradient on every rank.
        self.prunes = not graph.training and self.batch > 0
        self.as_numbers = self.prunes and x.device.type == "cpu" and not torch.is_grad_enabled()

    def route(self, i: int, x: Tensor | None, pooled: Tensor | None = None) -> None:
        """Write column i: weights of all edges out of node i, from its pooled output (4), (5).

        ``pooled`` is the mean of ``x`` over all of each image, where it is known already.
        """
        alpha = weight = None
        if x is not None:
            with _full_precision(x.device.type):
                if pooled is None or self.valid_sizes is not None:
                    pooled = _pool(x, self.valid_sizes)
                router, threshold = self.graph.routers[i], self.graph.thresholds[i:]
                dtype = torch.promote_types(pooled.dtype, threshold.dtype)
                alpha = _Sigmoid.apply(
                    nn.functional.linear(
                        pooled.to(dtype), router.weight.to(dtype), router.bias.to(dtype)
                    )
                )
                weight = self._gate(alpha, threshold.to(dtype))
            if self._images is not None:  # the other images do without the node
                missing = torch.ones(self.batch, 1, dtype=torch.bool, device=x.device)
                missing[self._images] = False
                weight, alpha = weight.masked_fill(missing, 0), alpha.masked_fill(missing, -1)
        self.alphas.append(alpha)
        self.weights.append(weight)
        if self.prunes:
            self.numbers.append(None if weight is None else weight.tolist())

    def _gate(self, alpha: Tensor, threshold: Tensor) -> Tensor:
        if self.prunes and self.graph.gate == "hard":
            return torch.where(alpha >= threshold, alpha, 0)
        psi = alpha * torch.sigmoid(alpha - threshold)
        return torch.where(alpha >= threshold, psi, 0) if self.prunes else psi

    def inputs(self, j: int) -> tuple[Tensor | None, list[int], Weights]:
        """Row j: the images that have the node (None: all), its sources, and their weights."""
        self._images = None
        sources = [i for i in range(j) if self.weights[i] is not None]
        if not self.prunes:
            return None, sources, self._row(sources, j)
        if j == self.graph.n_blocks + 1:
            self._never_empty(sources)
        rows = list(zip(*([image[j - 1 - i] for image in self.numbers[i]] for i in sources)))
        living = [b for b, row in enumerate(rows) if any(row)]
        used = [k for k, column in enumerate(zip(*rows)) if any(column)]
        if j == self.graph.n_blocks + 1:
            used = used or [0]  # all weights are 0: an output of zeros
        elif len(living) < self.batch:
            self._images = torch.tensor(living, dtype=torch.long, device=self.weights[0].device)
            rows = [rows[b] for b in living]
        sources = [sources[k] for k in used]
        if self.as_numbers:
            return self._images, sources, [[row[k] for k in used] for row in rows]
        if not sources:
            return self._images, sources, None
        weights = self._row(sources, j)
        return self._images, sources, weights if self._images is None else weights[self._images]

    def _row(self, sources: list[int], j: int) -> Tensor:
        return torch.stack([self.weights[i][:, j - 1 - i] for i in sources], 1)

    def _never_empty(self, sources: list[int]) -> None:
        """Where every edge into the output is closed, its strongest one stays open [choice].

        With the soft gate its weight is ψ(α), which an infinite threshold makes 0.
        """
        closed = [b for b in range(self.batch) if not any(self.numbers[i][b][-1] for i in sources)]
        if not closed:
            return
        alphas = torch.stack([self.alphas[i][:, -1] for i in sources], 1)
        best = alphas.argmax(1)
        kept = alphas
        if self.graph.gate == "soft":
            kept = alphas * torch.sigmoid(alphas - self.graph.thresholds[-1].to(alphas.dtype))
        for b in closed:
            k = int(best[b])
            i = sources[k]
            mask = torch.zeros_like(self.weights[i], dtype=torch.bool)
            mask[b, -1] = True
            self.weights[i] = torch.where(mask, kept[:, k : k + 1], self.weights[i])
            self.numbers[i][b][-1] = kept[b, k].item()

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
        self.as_numbers = False

    def route(self, i: int, x: Tensor | None, pooled: Tensor | None = None) -> None:
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


def _full_precision(device_type: str):
    """Autocast off: pooling, router and gate compute in float32 at least."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


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
        graph.records.append(records[name])
    try:
        yield records
    finally:
        for name, graph in graphs.items():
            graph.records = [kept for kept in graph.records if kept is not records[name]]
