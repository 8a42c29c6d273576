"""What nodes contribute: the sums that must hold, in float64, and the strongest parse."""

import pytest
import torch
from torch import nn

from gram_backbones import AOGNet, AOGNetVariant, create_model
from gram_backbones.analysis.contributions import (
    BlockContributions,
    EdgeContribution,
    measure_contributions,
)
from gram_backbones.grammar import NodeType, build_graph

MEASURES = ("to_root", "to_class")


def trained_like(**options):
    """A small classifier whose norms have statistics, scales and offsets of their own."""
    variant = AOGNetVariant((2, 4), (1, 2), (8, 16, 32), (None, "keep_first"), stem="cifar")
    row = {"scale_lateral_skip": True, "concat_by_id": False}
    row |= {key: options.pop(key) for key in row if key in options}
    model = AOGNet(AOGNet.find_variant(variant, **row), num_classes=5, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if model.res3.blocks[0].scales is not None:
        for stage in (model.res2, model.res3):
            for block in stage.blocks:
                nn.init.uniform_(block.scales, 0.2, 1.8)
    return model.double().eval()


@pytest.mark.parametrize(
    "options",
    ({}, {"learn_scales": True}, {"scale_lateral_skip": False, "concat_by_id": True}),
    ids=str,
)
def test_edges_sum_to_what_nodes_carry_and_to_what_flows_in(options):
    model = trained_like(**options)
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    for stage in (1, 2):
        found = measure_contributions(model, image, stage, target=3)
        assert found.logit == pytest.approx(model(image)[0, 3].item())
        for block in found.blocks:
            assert block.nodes[0].to_root == pytest.approx(1, rel=1e-9, abs=1e-9)
            for measure in MEASURES:
                for value in block.nodes[1:]:
                    given = [e for e in block.edges if e.source == value.node.id]
                    carried = sum(getattr(edge, measure) for edge in given)
                    assert carried == pytest.approx(getattr(value, measure), rel=1e-9, abs=1e-9)
            for value in block.nodes:
                taken = [e.to_root for e in block.edges if e.target == value.node.id]
                if value.node.type is not NodeType.T:
                    assert sum(taken) + value.added == pytest.approx(
                        value.to_root, rel=1e-9, abs=1e-9
                    )


def test_a_node_adds_what_the_offsets_of_its_norms_do():
    """FullGrad's completeness; and without offsets, all that the root has came from its words."""
    model = trained_like()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    block = model.res3.blocks[1]
    found = measure_contributions(model, image, 2).blocks[1]
    outputs = []
    handle = block.ops[0].register_forward_hook(lambda *call: outputs.append(call[2]))
    model(image)
    handle.remove()
    root = outputs[0]
    share = (root * root.detach()).sum() / root.detach().square().sum()
    for value, op in zip(found.nodes, block.ops):
        norms = [module for module in op.modules() if isinstance(module, nn.BatchNorm2d)]
        gradients = torch.autograd.grad(share, [m.bias for m in norms], retain_graph=True)
        offsets = 0.0
        for norm, gradient in zip(norms, gradients):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            offsets += (gradient * (norm.bias - norm.running_mean * scale)).sum().item()
        assert value.added == pytest.approx(offsets, rel=1e-9, abs=1e-9)
    assert max(abs(value.added) for value in found.nodes) > 1e-3
    words = [v.to_root - v.added for v in found.nodes if v.node.type is NodeType.T]
    total = sum(words) + sum(value.added for value in found.nodes)
    assert total == pytest.approx(1, rel=1e-9, abs=1e-9)


def test_the_last_roots_logit_is_all_but_its_offsets():
    """Stage by stage the class's logit flows through the root and nothing else."""
    model = trained_like()
    nn.init.zeros_(model.fc.bias)
    last = model.res3.blocks[1].norm
    nn.init.zeros_(last.bias)
    nn.init.zeros_(last.running_mean)
    found = measure_contributions(model, torch.randn(1, 3, 16, 16, dtype=torch.float64), 2)
    assert found.target == max(range(5), key=found.probabilities.__getitem__)
    assert found.blocks[1].nodes[0].to_class == pytest.approx(found.logit, rel=1e-9, abs=1e-9)


def test_nothing_is_left_behind_in_the_model():
    model = trained_like()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    before = model(image)
    measure_contributions(model, image, 2)
    assert torch.equal(model(image), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_strongest_parse_takes_the_best_child_of_every_or_node():
    graph = build_graph(3)
    amounts = {}
    for node in graph.nodes:
        for child in node.children:
            amounts[child, node.id] = 0.1
    split = next(v for v in graph.nodes if v.type is NodeType.AND and v.left_words == 2)
    amounts[split.id, 0] = 0.6
    pair = graph.nodes[min(split.children, key=lambda i: -graph.nodes[i].length)]
    whole = next(i for i in pair.children if graph.nodes[i].type is NodeType.T)
    amounts[whole, pair.id] = 0.4
    edges = [EdgeContribution(*key, False, value, -value) for key, value in amounts.items()]
    # A lateral neighbour is no alternative, however much it adds.
    edges += [EdgeContribution(v.lateral, v.id, True, 9, 9) for v in graph.nodes if v.lateral]
    block = BlockContributions(graph, (), tuple(edges))
    parse = block.strongest_parse()
    assert [(part.node.type.value, part.node.span, part.amount) for part in parse.walk()] == [
        ("AND", (0, 2), 0.6),
        ("T", (0, 1), 0.4),
        ("T", (2, 2), 0.1),
    ]
    assert block.strongest_parse("to_class").node.id != split.id


@pytest.mark.parametrize(
    ("model", "shape", "stage", "target", "sentence"),
    (
        ("dgnet_cifar_r20", (1, 3, 32, 32), 1, None, "the model is a DGNet; only an AOGNet"),
        ("features", (1, 3, 16, 16), 1, None, "must be a classifier"),
        ("training", (1, 3, 16, 16), 1, None, "in eval mode"),
        ("deployed", (1, 3, 16, 16), 1, None, "not deployed"),
        ("small", (2, 3, 16, 16), 1, None, r"shape \(2, 3, 16, 16\); it must be \(1, 3, H, W\)"),
        ("small", (1, 3, 16, 16), 3, None, "stage is 3; the model has stages 1 to 2"),
        ("small", (1, 3, 16, 16), 1, 5, "class is 5; the model has classes 0 to 4"),
    ),
)
def test_wrong_input_is_named(model, shape, stage, target, sentence):
    made = {
        "features": lambda: AOGNet("aognet_cifar_s_pruned").eval(),
        "training": lambda: trained_like().float().train(),
        "deployed": lambda: trained_like().float().deploy(),
        "small": lambda: trained_like().float(),
    }.get(model, lambda: create_model(model, num_classes=10).eval())()
    with pytest.raises(ValueError, match=sentence):
        measure_contributions(made, torch.zeros(shape), stage, target)
