"""A stage of DG-Net: its blocks as nodes of a complete graph, edges weighted for every image.

Paper: "Dynamic Graph: Learning Instance-aware Connectivity for Neural Networks", ICLR 2021
submission, sections 3.1 to 3.5. Marked [choice]: what the paper leaves open.

A stage of n blocks has the nodes 0 (input), 1 … n (blocks) and n + 1 (output). Node j reads the sum
over i < j of weight(i, j) · x_i. The router of node i predicts the weights of all edges out of i
from the pooled x_i; every receiving node has a threshold τ.

This is plain tensor code, the same for training, tracing, export and compilation: every edge and
block is computed, and closed edges have weight 0. `gram_backbones.dgnet.skipping` leaves them out
in eager inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..folding import has_hooks
from ..fused import run
from ..layers import Norm, resolve_norm
from ..recompute import recompute
from .blocks import accept_shortcut, call_with_shortcut, parts_of, require_known_parts
from .skipping import can_skip, run_open_edges
from .sums import ValidSizes, mean_over_valid, weighted_sum
from .wiring import EDGES, wired_edges

GATES = ("straight_through", "soft", "paper")
# τ's gradient is a tenth of ψ's [choice]: with SGD, a tenth of the learning rate. Every edge into a
# node that should weigh less also raises the node's τ, which then passes the α's of edges that the
# network needs. Adam and other adaptive optimisers normalise gradients, so with them the scale has
# no effect.
THRESHOLD_RATE = 0.1


class DynamicGraph(nn.Module):
    """The edges of one stage. Blocks are passed in and so keep their names in the network.

    Args:
        n_blocks: number n of block nodes.
        channels: channels C of the stage's feature maps.
        projection: brings the stage input to the stage's shape where the first block changes the
            shape without a shortcut of its own [choice]; None otherwise.
        edges: ``"dynamic"`` predicts weights per image; the others have no routers. ``"static"``
            learns one weight per edge (Table 6); ``"er"``, ``"ba"`` and ``"ws"`` learn one per edge
            of a random wiring (Table 4); ``"chain"`` is the base network: weight 1 from i to i + 1.
        router_bias: initial bias of the routers for the edges from i to i + 1 (Figure 4): 3 open,
            0 neutral, -3 closed. Static weights start at the sigmoids of both biases, those of
            random wirings all at that of ``router_bias``.
        side_bias: initial bias for all other edges. At -3 the stage starts near the base
            network [choice]; the paper starts all edges alike.
        gate: how α becomes an edge's weight. ``"straight_through"``: α where α ≥ τ, else 0, in
            training and inference alike (equation (5)), with the gradient of ψ(α) = α · σ(α − τ),
            a tenth of it for τ [choice]. ``"soft"``: ψ(α) in both; no edge closes.
            ``"paper"``: ψ(α) in training and equation (5) in inference, which do not agree: see
            docs/dgnet.md.
        block_shortcut: blocks keep their internal shortcuts; False leaves them to the edges, a
            reading of section 3.1 [choice].
        wiring_seed: seed of the random wirings.
        reads_projected: node 1 reads x_0, not the stage input.
        with_cp: recompute the activations inside each block in the backward pass to save memory.

    Attributes:
        feeds_others: whether the input node feeds more than the first block.
        records: lists that get the matrix M of every forward pass; see
            :func:`record_connectivity`.

    Raises:
        ValueError: an unknown ``edges`` or ``gate``.

    Examples:
        >>> from torchvision.models.resnet import BasicBlock
        >>> blocks = nn.ModuleList(BasicBlock(16, 16) for _ in range(3))
        >>> DynamicGraph(3, 16)(torch.randn(2, 16, 8, 8), blocks).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        n_blocks: int,
        channels: int,
        *,
        projection: nn.Module | None = None,
        edges: str = "dynamic",
        router_bias: float = 3.0,
        side_bias: float = -3.0,
        gate: str = "straight_through",
        block_shortcut: bool = True,
        wiring_seed: int = 0,
        reads_projected: bool = False,
        with_cp: bool = False,
    ):
        super().__init__()
        if edges not in EDGES:
            raise ValueError(f"edges is {edges!r}; allowed are {EDGES}")
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}; allowed are {GATES}")
        if gate == "paper" and edges == "dynamic":
            warnings.warn(
                "gate='paper' weighs edges otherwise in training than in inference, and a network "
                "trained with it collapses at evaluation; evaluate it with gate='soft', or train "
                "with the default gate",
                stacklevel=2,
            )
        self.n_blocks = n_blocks
        self.edges = edges
        self.gate = gate
        self.block_shortcut = block_shortcut
        self.with_cp = with_cp
        self.projection = projection
        self.reads_projected = reads_projected
        self.records: list[list[Tensor]] = []
        self.gates_as_in_training = False  # see training_gate
        self.wiring = wired_edges(edges, n_blocks, wiring_seed)
        self.feeds_others = any(i == 0 and j > 1 for i, j in self.wiring)
        self.needs_x0 = self.feeds_others or reads_projected
        if edges == "dynamic":
            routers = [nn.Linear(channels, n_blocks + 1 - i) for i in range(n_blocks + 1)]
            for router in routers:
                nn.init.normal_(router.weight, std=0.01)
            self.routers = nn.ModuleList(routers)
            self.thresholds = nn.Parameter(torch.empty(n_blocks + 1))
            self.open_chain(0.0, router_bias, side_bias)
        elif edges != "chain":
            near = [edges != "static" or j == i + 1 for i, j in self.wiring]
            biases = [float(router_bias if is_near else side_bias) for is_near in near]
            self.edge_weights = nn.Parameter(torch.tensor(biases).sigmoid())

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
                bias = cast(Tensor, router.bias)
                bias.fill_(side_bias)
                bias[0] = chain_bias

    def forward(
        self, x: Tensor, blocks: Sequence[nn.Module], valid_sizes: ValidSizes | None = None
    ) -> Tensor:
        """Run a stage.

        Args:
            x: stage input ``(B, C_in, H_in, W_in)``; B may be 0.
            blocks: the stage's n blocks, called as modules.
            valid_sizes: per image, height and width of its unpadded part in the stage's feature
                maps; routers pool only that. None pools everything.

        Returns:
            Stage output ``(B, C, H, W)``.

        Raises:
            ValueError: another number of ``valid_sizes`` than images.
        """
        if valid_sizes is not None and len(valid_sizes) != len(x):
            raise ValueError(f"valid_sizes has {len(valid_sizes)} entries for {len(x)} images")
        x0 = self._input_node(x, blocks[0])
        x = x0 if self.reads_projected else x
        dynamic = self.edges == "dynamic"
        edges = _DynamicEdges(self, valid_sizes) if dynamic else _FixedEdges(self, x)
        as_trained = self.training or self.gates_as_in_training
        if isinstance(edges, _DynamicEdges) and not as_trained and can_skip(x, blocks):
            out = run_open_edges(self, edges, x, x0, blocks)
        else:
            out = self._run_all_edges(edges, x, x0, blocks)
        if self.records:
            matrix = edges.matrix(x0)
            for record in self.records:
                record.append(matrix)
        return out

    def _run_all_edges(
        self, edges: _DynamicEdges | _FixedEdges, x: Tensor, x0: Tensor, blocks: Sequence[nn.Module]
    ) -> Tensor:
        features = [x0]
        edges.leave(0, x0)
        for j, block in enumerate(blocks, 1):
            sources, weights = edges.into(j)
            inputs = [x] if j == 1 else [features[i] for i in sources]
            features.append(self.run_node(j, block, weighted_sum(inputs, weights), weights, x0))
            edges.leave(j, features[j])
        sources, weights = edges.into(self.n_blocks + 1)
        return weighted_sum([features[i] for i in sources], weights)

    def run_node(
        self,
        j: int,
        block: nn.Module,
        x: Tensor,
        weights: Tensor | None,
        x0: Tensor,
        *,
        consume: bool = False,
    ) -> Tensor:
        """Node j's output: its block on ``x``, the weighted sum of what the node reads.

        With ``consume`` nothing else reads ``x``, and a deployed block may write over it.

        Node 1 reads the stage input, with weight(0, 1) · x_0 as its shortcut, so that projection
        and norm of the shortcut run once in a forward pass [choice].
        """
        parts = parts_of(block)
        run: Callable[[Tensor], Tensor] = block
        if parts.adds_shortcut and not self.block_shortcut:
            run = partial(call_with_shortcut, block, shortcut=None)
        elif parts.projection is not None and j == 1 and self.needs_x0:
            shortcut = weighted_sum([x0], weights)
            run = partial(call_with_shortcut, block, shortcut=shortcut, consume=consume)
        elif consume and parts.adds_shortcut and parts.projection is None and not has_hooks(block):
            run = partial(call_with_shortcut, block, shortcut=x, consume=True)
        if self.with_cp and self.training:
            return recompute(block, x, run=run)
        return run(x)

    def _input_node(self, x: Tensor, first: nn.Module) -> Tensor:
        """x_0: the stage input in the stage's shape [choice]."""
        if self.projection is not None:
            return run(self.projection, x)
        projection = parts_of(first).projection
        # Where only node 1 reads the input, its block projects by itself.
        return x if projection is None or not self.needs_x0 else run(projection, x)

    def weigh(self, alpha: Tensor, threshold: Tensor) -> Tensor:
        """Weights of edges with router outputs α ``(B, k)`` and their nodes' τ ``(k,)``."""
        as_trained = self.training or self.gates_as_in_training
        if self.gate == "soft" or (self.gate == "paper" and as_trained):
            return alpha * torch.sigmoid(alpha - threshold)
        letter = torch.where(alpha >= threshold, alpha, 0).detach()  # equation (5)
        slow = THRESHOLD_RATE * threshold + (1 - THRESHOLD_RATE) * threshold.detach()
        psi = alpha * torch.sigmoid(alpha - slow)
        # The difference is 0, so closed edges are exactly 0; its gradient is that of ψ.
        return letter + (psi - psi.detach())

    def __getstate__(self) -> dict:
        # What a context manager sets for a while is not copied.
        return {**self.__dict__, "records": [], "gates_as_in_training": False}


class _DynamicEdges:
    """The edges of one forward pass: rows of the buffer M, from the columns that routers write."""

    def __init__(self, graph: DynamicGraph, valid_sizes: ValidSizes | None):
        self.graph = graph
        self.valid_sizes = valid_sizes
        # Asked of the list: fx makes a proxy, without a known type, of a parameter by name.
        # Replicas of DataParallel have no list.
        place = next(graph.parameters(), None)
        place = graph.thresholds if place is None else place
        self.dtype = torch.promote_types(place.dtype, torch.float32)
        self.device_type = place.device.type
        self.features_dtype = place.dtype
        if _is_autocast(self.device_type):
            self.features_dtype = torch.get_autocast_dtype(self.device_type)
        self.rows: list[Tensor] = []  # row j is (B, j), the edges into node j
        self._columns: list[Tensor] = []  # column i is (B, n + 1 - i), the edges out of node i
        self._to_output: list[Tensor] = []  # α of the edges into the output node
        self._alive: Tensor | None = None  # (B, 1): which images have the last node

    def leave(self, i: int, x: Tensor) -> None:
        """Let the router of node i weigh all edges out of it (equations (4) and (5))."""
        router, threshold = self.graph.routers[i], self.graph.thresholds[i:]
        with _full_precision(self.device_type):
            pooled = mean_over_valid(x, self.valid_sizes, self.dtype)
            # A quantised router has a method named weight, and takes float32.
            own = getattr(router.weight, "dtype", self.dtype)
            # exp(log σ(z)): its derivative α · σ(−z) does not round to 0 where α rounds to 1.
            alpha = F.logsigmoid(router(pooled.to(own)).to(self.dtype)).exp()
            weight = self.graph.weigh(alpha, threshold.to(self.dtype))
        to_output = alpha[:, -1]
        if self._alive is not None:  # a node without input feeds nothing
            weight = torch.where(self._alive, weight, 0)
            to_output = torch.where(self._alive[:, 0], to_output, -1)
        self._columns.append(weight)
        self._to_output.append(to_output)

    def into(self, j: int) -> tuple[Sequence[int], Tensor]:
        """The sources of node j and the weights ``(B, j)`` of their edges."""
        row = torch.stack([column[:, j - 1 - i] for i, column in enumerate(self._columns)], 1)
        if j == self.graph.n_blocks + 1:
            row = self._never_empty(row)
        self._alive = row.ne(0).any(1, keepdim=True)
        self.rows.append(row)
        return range(j), row

    def _never_empty(self, row: Tensor) -> Tensor:
        """Where all edges into the output are closed, the strongest stays open at α [choice]."""
        alpha = torch.stack(self._to_output, 1)
        strongest = torch.arange(len(self._to_output), device=row.device) == alpha.argmax(1, True)
        closed = row.eq(0).all(1, keepdim=True)
        tiny = torch.finfo(self.features_dtype).tiny  # α itself may underflow
        return torch.where(closed & strongest, alpha.clamp(min=tiny), row)

    def matrix(self, like: Tensor) -> Tensor:
        """The buffer M, ``(B, n + 2, n + 2)``: row j holds the weights into node j."""
        size = self.graph.n_blocks + 2
        matrix = self.rows[0].new_zeros(like.shape[0], size, size)
        for j, row in enumerate(self.rows, 1):
            matrix[:, j, :j] = row.detach()
        return matrix


class _FixedEdges:
    """Edges whose weights do not depend on the image."""

    def __init__(self, graph: DynamicGraph, x: Tensor):
        self.graph = graph
        self.batch = x.shape[0]

    def leave(self, i: int, x: Tensor) -> None:
        """No routers: nothing to weigh."""

    def into(self, j: int) -> tuple[Sequence[int], Tensor | None]:
        """The sources of node j in the wiring, and their weights; None for weight 1."""
        entries = [k for k, (_, target) in enumerate(self.graph.wiring) if target == j]
        sources = [self.graph.wiring[k][0] for k in entries]
        if self.graph.edges == "chain":
            return sources, None
        return sources, self.graph.edge_weights[entries].expand(self.batch, -1)

    def matrix(self, like: Tensor) -> Tensor:
        """The buffer M, the same for every image."""
        size = self.graph.n_blocks + 2
        matrix = torch.zeros(like.shape[0], size, size, device=like.device)
        for k, (source, target) in enumerate(self.graph.wiring):
            chain = self.graph.edges == "chain"
            matrix[:, target, source] = 1.0 if chain else self.graph.edge_weights[k].detach()
        return matrix


def graph_for(
    blocks: Sequence[nn.Module],
    in_channels: int,
    channels: int,
    stride: int | tuple[int, int],
    *,
    norm: Norm = "BN",
    **options,
) -> DynamicGraph:
    """The graph of a stage of given blocks; from then on the blocks take shortcuts from it.

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
    first = parts_of(blocks[0])
    graph = DynamicGraph(len(blocks), channels, **options)
    changes_shape = in_channels != channels or stride not in (1, (1, 1)) or graph.reads_projected
    if first.projection is None and changes_shape and graph.needs_x0:
        conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        graph.projection = nn.Sequential(conv, resolve_norm(norm)(channels))
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    elif first.projection is not None and not graph.needs_x0 and not graph.block_shortcut:
        # It is never used: as a trainable parameter it would break data parallel training.
        first.projection.requires_grad_(False)
    for block in blocks:
        accept_shortcut(block)
    return graph


def _full_precision(device_type: str):
    """Autocast off: pooling, router and gate compute in float32 at least."""
    if _is_autocast(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _is_autocast(device_type: str) -> bool:
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def dynamic_graphs(model: nn.Module) -> dict[str, DynamicGraph]:
    """All graphs in a module, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DynamicGraph)}


@contextmanager
def training_gate(model: nn.Module) -> Iterator[None]:
    """Weigh edges as in training while the context lasts, and skip none.

    Norms and dropout keep their mode.

    Args:
        model: any module that contains dynamic stages.

    Examples:
        >>> from gram_backbones import DGNet
        >>> model, images = DGNet("dgnet_r18").eval(), torch.randn(1, 3, 64, 64)
        >>> with torch.no_grad(), training_gate(model):
        ...     as_trained = model(images)
        >>> with torch.no_grad():
        ...     torch.testing.assert_close(model(images), as_trained)
    """
    graphs = dynamic_graphs(model).values()
    before = [graph.gates_as_in_training for graph in graphs]
    for graph in graphs:
        graph.gates_as_in_training = True
    try:
        yield
    finally:
        for graph, value in zip(graphs, before):
            graph.gates_as_in_training = value


@contextmanager
def record_connectivity(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the matrices M of every stage while the context lasts.

    Args:
        model: any module that contains dynamic stages, for instance a whole detector.

    Yields:
        For every :class:`DynamicGraph`, by its name in ``model``, a list with one tensor
        ``(B, n + 2, n + 2)`` per forward pass; row j holds the weights into node j.

    Examples:
        >>> from gram_backbones import DGNet
        >>> model = DGNet("dgnet_r18").eval()
        >>> with record_connectivity(model) as matrices:
        ...     features = model(torch.randn(1, 3, 64, 64))
        >>> matrices["graphs.0"][0].shape
        torch.Size([1, 4, 4])
    """
    graphs = dynamic_graphs(model)
    records: dict[str, list[Tensor]] = {name: [] for name in graphs}
    for name, graph in graphs.items():
        graph.records.append(records[name])
    try:
        yield records
    finally:
        for name, graph in graphs.items():
            graph.records = [kept for kept in graph.records if kept is not records[name]]
