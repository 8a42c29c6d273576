"""How much every node of an AOGNet's block adds to the output of its root, for one image.

The measure is gradient × activation. With S a number that the network computes and f(v) the output
of node v, node v carries ``Σ f(v) · ∂S/∂f(v)`` of S, and the edge from u to v carries the part that
reaches S through it, by the convolutions and the skip connection of v together. What is linear in
the grammar is then exact:

- what a node carries is the sum of what its edges to parents and lateral neighbours carry;
- what flows into an OR-node, a sum, or an AND-node, a concatenation, is the sum over its edges;
- a node carries what flows into it plus what its own norms add, Σ b · ∂S/∂b over their constants
  b = β − γμ/σ, since without these a node's operation in eval mode is piecewise linear (FullGrad,
  Srinivas and Fleuret 2019; not so with GroupNorm, whose statistics depend on the image).

The gradient is taken at this image: if a node were removed, others would change as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..aognet import AOGBlock, AOGNet, AOGStage
from ..fused import is_deployed
from ..grammar import AndOrGraph, Node, NodeType
from .grammars import check_stage


class NodeContribution(NamedTuple):
    """What one node carries.

    Attributes:
        node: of the block's graph.
        rms: root mean square of the node's output.
        to_root: share of the root's output, by its squared norm; 1 for the root.
        added: the part of ``to_root`` that the norms of the node's own operation add.
        to_class: part of the class's logit; below 0 if it speaks against the class.
    """

    node: Node
    rms: float
    to_root: float
    added: float
    to_class: float


class EdgeContribution(NamedTuple):
    """What one edge carries, see :class:`NodeContribution`.

    Attributes:
        source, target: ids of its nodes, in the direction of the features.
        lateral: whether it is a lateral connection.
        to_root, to_class: as of a node.
    """

    source: int
    target: int
    lateral: bool
    to_root: float
    to_class: float


class Parse(NamedTuple):
    """A part of a parse tree: what an OR-node chose, and the parts of that.

    Attributes:
        node: a T- or an AND-node.
        amount: what its edge to the OR-node carries.
        parts: of an AND-node, left and right.
    """

    node: Node
    amount: float
    parts: tuple[Parse, ...]

    def walk(self) -> Iterator[Parse]:
        """This part and all below it, from the top."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class BlockContributions:
    """What all nodes and edges of one block carry.

    Attributes:
        graph: of the block.
        nodes: by id.
        edges: syntactic and lateral ones.
    """

    graph: AndOrGraph
    nodes: tuple[NodeContribution, ...]
    edges: tuple[EdgeContribution, ...]

    def strongest_parse(self, measure: str = "to_root") -> Parse:
        """The parse that takes at every OR-node the child that carries most.

        Args:
            measure: ``"to_root"`` or ``"to_class"``.
        """

        def below(or_node: Node) -> Parse:
            edges = [e for e in self.edges if e.target == or_node.id and not e.lateral]
            best = max(edges, key=lambda edge: getattr(edge, measure))
            node = self.graph.nodes[best.source]
            children = sorted((self.graph.nodes[i] for i in node.children), key=lambda v: v.span)
            return Parse(node, getattr(best, measure), tuple(map(below, children)))

        return below(self.graph.root)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        nodes = [
            {"id": v.node.id, "type": v.node.type.value, "words": list(v.node.span)}
            | {key: getattr(v, key) for key in ("rms", "to_root", "added", "to_class")}
            for v in self.nodes
        ]
        parses = {
            measure: [part.node.id for part in self.strongest_parse(measure).walk()]
            for measure in ("to_root", "to_class")
        }
        edges = [edge._asdict() for edge in self.edges]
        return {"nodes": nodes, "edges": edges, "strongest_parse": parses}


class Explanation(NamedTuple):
    """What :func:`measure_contributions` found.

    Attributes:
        probabilities: of all classes.
        target: index of the class whose logit was explained.
        logit: of this class.
        blocks: of the stage, in order.
    """

    probabilities: tuple[float, ...]
    target: int
    logit: float
    blocks: tuple[BlockContributions, ...]


def measure_contributions(
    model: AOGNet, image: Tensor, stage: int, target: int | None = None
) -> Explanation:
    """What every node of a stage's blocks adds to their roots, and to a class's logit.

    Args:
        model: a classifier in eval mode.
        image: ``(1, 3, H, W)``, normalised.
        stage: from 1, as in the paper.
        target: index of a class; by default the most probable one.

    Raises:
        ValueError: the model is no AOGNet with a classifier in eval mode, or is deployed; the
            image has another shape; or there is no such stage or class.

    Examples:
        >>> model = AOGNet("aognet_cifar_s_pruned", num_classes=10).eval()
        >>> found = measure_contributions(model, torch.randn(1, 3, 32, 32), stage=2)
        >>> block = found.blocks[0]
        >>> round(block.nodes[0].to_root, 6)
        1.0
        >>> len(block.nodes) == len(block.graph.nodes)
        True
    """
    check_model(model, image)
    check_stage("the model", len(model.stage_names), stage)
    blocks = stage_blocks(model, stage)
    with torch.enable_grad(), _recorded(blocks) as records:
        logits = model(image.detach().clone().requires_grad_())[0]
        target = check_class(target, logits)
        inputs = [tensor for record in records for tensor in record.tensors()]
        to_class = iter(torch.autograd.grad(logits[target], inputs, retain_graph=True))
        found = []
        for block, record in zip(blocks, records):
            root = record.outputs[block.graph.root.id]
            # A share of the root's squared norm, along its own direction.
            along = (root * root.detach()).sum() / root.detach().square().sum().clamp_min(1e-30)
            tensors = record.tensors()
            to_root = torch.autograd.grad(along, tensors, retain_graph=True)
            of_class = [next(to_class) for _ in tensors]
            found.append(_contributions(block, record, to_root, of_class))
    probabilities = tuple(logits.detach().softmax(0).tolist())
    return Explanation(probabilities, target, float(logits[target].detach()), tuple(found))


def check_model(model: object, image: Tensor) -> None:
    """Check that a model and an image can be explained.

    Raises:
        ValueError: see :func:`measure_contributions`.
    """
    if not isinstance(model, AOGNet):
        raise ValueError(f"the model is a {type(model).__name__}; only an AOGNet has a grammar")
    if getattr(model, "fc", None) is None or model.training or is_deployed(model):
        raise ValueError(
            "the model must be a classifier (num_classes), in eval mode and not deployed"
        )
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"the image has shape {tuple(image.shape)}; it must be (1, 3, H, W)")


def check_class(target: int | None, logits: Tensor) -> int:
    """The index of a class, by default the most probable one.

    Raises:
        ValueError: there is no such class.
    """
    if target is None:
        return int(logits.argmax())
    if not 0 <= target < len(logits):
        raise ValueError(f"class is {target}; the model has classes 0 to {len(logits) - 1}")
    return target


def stage_blocks(model: AOGNet, stage: int) -> list[AOGBlock]:
    """The blocks of a stage, which counts from 1."""
    module = cast(AOGStage, getattr(model, f"res{stage + 1}"))
    return cast("list[AOGBlock]", list(module.blocks))


@dataclass
class _Record:
    """Inputs and outputs of a block's operations, by node id."""

    convs: dict[int, Tensor] = field(default_factory=dict)
    skips: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All of them, each kind by node id."""
        kinds = (self.convs, self.skips, self.outputs)
        return [kind[i] for kind in kinds for i in sorted(kind)]


@contextmanager
def _recorded(blocks: list[AOGBlock]) -> Iterator[list[_Record]]:
    records, handles = [_Record() for _ in blocks], []
    for block, record in zip(blocks, records):
        for i, op in enumerate(block.ops):

            def before(_, inputs, record=record, i=i):
                # As tensors of their own: both inputs may be one tensor, or a child's output.
                record.convs[i], record.skips[i] = (x.view_as(x) for x in inputs)
                return record.convs[i], record.skips[i]

            def after(_, inputs, output, record=record, i=i):
                record.outputs[i] = output

            handles += [op.register_forward_pre_hook(before), op.register_forward_hook(after)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _contributions(
    block: AOGBlock, record: _Record, to_root: tuple[Tensor, ...], to_class: list[Tensor]
) -> BlockContributions:
    nodes: list[dict[str, float]] = [{} for _ in block.ops]
    edges: dict[tuple[int, int, bool], list[float]] = {}
    for measure, flat in (("to_root", to_root), ("to_class", to_class)):
        count = len(block.ops)
        convs, skips, outputs = (flat[i * count : (i + 1) * count] for i in range(3))
        for i, values in enumerate(nodes):
            values[measure] = _product(record.outputs[i], outputs[i])
            if measure == "to_root":
                flows_in = _product(record.convs[i], convs[i]), _product(record.skips[i], skips[i])
                values["added"] = values[measure] - sum(flows_in)
        for key, amount in _edge_amounts(block, record, convs, skips):
            edges.setdefault(key, []).append(amount)
    return BlockContributions(
        block.graph,
        tuple(
            NodeContribution(
                node,
                float(record.outputs[node.id].detach().square().mean().sqrt()),
                **values,
            )
            for node, values in zip(block.graph.nodes, nodes)
        ),
        tuple(EdgeContribution(*key, *amounts) for key, amounts in edges.items()),
    )


def _edge_amounts(
    block: AOGBlock, record: _Record, convs, skips
) -> Iterator[tuple[tuple[int, int, bool], float]]:
    """What every edge carries: source, target, whether lateral, and the amount."""
    learned = None if block.scales is None else iter(block.scales.tolist())
    for step in block.steps:
        scales = [next(learned) if learned else term.scale for term in step.skip_terms]
        target, start = step.node.id, 0
        conv, skip = convs[target], skips[target]
        for part, scale in zip(step.conv_parts, scales):  # of both inputs in the same order
            output = record.outputs[part.source]
            # A child is a slice of an AND-node's input, and a summand of an OR-node's.
            stop = start + output.shape[1]
            gradient = conv[:, start:stop] + scale * skip[:, start:stop]
            yield (part.source, target, False), _product(output, gradient)
            start = stop if step.node.type is NodeType.AND else 0
        if step.conv_lateral is not None:
            gradient = conv if step.skip_lateral is None else conv + scales[-1] * skip
            source = step.conv_lateral.source
            yield (source, target, True), _product(record.outputs[source], gradient)


def _product(x: Tensor, gradient: Tensor) -> float:
    return float((x.detach() * gradient).sum())
