"""One stage of DG-Net against its definition: gates, derivatives, pruning, ablations."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from gram_backbones.dgnet.blocks import block_parts
from gram_backbones.dgnet.graph import (
    GATES,
    DynamicGraph,
    record_connectivity,
    training_gate,
)
from gram_backbones.dgnet.wiring import wired_edges

C = 8
INF = float("inf")


def basic_blocks(n, first_shape_changes=True, norm=nn.BatchNorm2d):
    """BasicBlocks; the first goes from 4 channels with stride 2 unless shapes are to agree."""
    down = nn.Sequential(nn.Conv2d(4, C, 1, 2, bias=False), norm(C))
    first = BasicBlock(4, C, 2, down, norm_layer=norm)
    if not first_shape_changes:
        first = BasicBlock(C, C, norm_layer=norm)
    return nn.ModuleList([first, *(BasicBlock(C, C, norm_layer=norm) for _ in range(n - 1))])


def settle(blocks):
    for module in blocks.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return blocks.double()


def spread(graph, scale=1.0):
    """Routers whose weights differ from image to image and lie on both sides of τ = 0.5."""
    for router in graph.routers:
        nn.init.normal_(router.weight, std=scale)
        nn.init.normal_(router.bias, std=0.5)
    nn.init.constant_(graph.thresholds, 0.5)
    return graph.double()


def stage(n=4, batch=3, seed=0, **options):
    torch.manual_seed(seed)
    blocks = settle(basic_blocks(n))
    graph = spread(DynamicGraph(n, C, **options))
    return graph, blocks, torch.randn(batch, 4, 12, 12, dtype=torch.double)


def by_definition(graph, blocks, x):
    """The spec image by image and edge by edge, in plain loops."""
    outputs, matrices = [], []
    for image in x.split(1):
        n = graph.n_blocks
        features = [block_parts(blocks[0]).projection(image)]
        matrix = image.new_zeros(n + 2, n + 2)
        alphas = image.new_full((n + 2, n + 2), -1.0)
        for j in range(n + 2):
            if j > 0:
                row = matrix[j, :j]
                if j == n + 1 and not row.any():
                    best = int(alphas[j, :j].argmax())
                    matrix[j, best] = alphas[j, best]
                    row = matrix[j, :j]
                if j <= n and not row.any():
                    features.append(None)
                    continue
                total = sum(w * f for w, f in zip(row, features) if f is not None)
                if j == n + 1:
                    outputs.append(total)
                    break
                parts = block_parts(blocks[j - 1])
                if j == 1:
                    out = parts.branch(row[0] * image)
                    shortcut = row[0] * features[0]
                else:
                    out, shortcut = parts.branch(total), total
                features.append(parts.activation(out + (shortcut if graph.block_shortcut else 0)))
            alpha = graph.routers[j](features[j].mean((2, 3))).sigmoid()[0]
            tau = graph.thresholds[j:]
            if graph.gate == "soft" or graph.gate == "paper" and graph.training:
                weight = alpha * torch.sigmoid(alpha - tau)
            else:
                weight = torch.where(alpha >= tau, alpha, 0)
            matrix[j + 1 :, j] = weight
            alphas[j + 1 :, j] = alpha
        matrices.append(matrix)
    return torch.cat(outputs), torch.stack(matrices)


@pytest.mark.parametrize("block_shortcut", (True, False))
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mode", ("training", "inference", "inference with gradients"))
@pytest.mark.parametrize("batch", (1, 2, 5))
def test_a_stage_is_its_definition_image_by_image(batch, mode, gate, block_shortcut):
    closed = 0
    for seed in range(3):
        graph, blocks, x = stage(batch=batch, seed=seed, gate=gate, block_shortcut=block_shortcut)
        graph.train(mode == "training")
        blocks.eval()  # batch statistics would tie the images of a batch together
        with torch.set_grad_enabled(mode != "inference"), record_connectivity(graph) as records:
            out = graph(x, blocks)
        with torch.no_grad():
            wanted, matrix = by_definition(graph, blocks, x)
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(records[""][0], matrix, rtol=1e-6, atol=1e-9)
        closed += int((matrix == 0).sum()) - batch * 21  # 21 of 36 entries are no edges
    closes = gate == "straight_through" or gate == "paper" and mode != "training"
    assert closed > 0 if closes else closed == 0


@pytest.mark.parametrize("gate", ("straight_through", "soft"))
def test_inference_weighs_edges_as_training_does(gate):
    graph, blocks, x = stage(gate=gate)
    blocks.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            graph.eval()(x, blocks), graph.train()(x, blocks), rtol=1e-12, atol=0
        )
    graph, blocks, x = stage(gate="paper")
    blocks.eval()
    with torch.no_grad():
        training, inference = graph.train()(x, blocks), graph.eval()(x, blocks)
        with training_gate(graph):
            torch.testing.assert_close(graph(x, blocks), training, rtol=1e-12, atol=0)
    assert (inference - training).norm() > 0.1 * training.norm()


def test_a_node_runs_only_on_the_images_that_need_it():
    graph, blocks, x = stage(n=4, batch=4, seed=1)
    graph.eval(), blocks.eval()
    sizes = []
    for block in blocks[1:]:
        block.conv1.register_forward_hook(lambda _m, args, _o: sizes.append(args[0].shape[0]))
    with torch.no_grad(), record_connectivity(graph) as records:
        graph(x, blocks)
    living = records[""][0][:, 2:5].ne(0).any(2).sum(0)
    assert sizes == [count for count in living.tolist() if count]
    assert any(count < 4 for count in sizes) or len(sizes) < 3


def test_dead_nodes_propagate():
    graph, blocks, x = stage(n=4, batch=2)
    graph.eval(), blocks.eval()
    with torch.no_grad():
        graph.thresholds.fill_(-1)
        graph.thresholds[1] = 2  # node 2 gets nothing, so node 3, fed by it alone, gets nothing
        for i in (0, 1):
            graph.routers[i].bias[2 - i] = -40  # closes i → 3 against τ = 0 below
        graph.thresholds[2] = 0.1
        ran = []
        for k, block in enumerate(blocks):
            block.bn2.register_forward_hook(lambda _m, _a, _o, k=k: ran.append(k + 1))
        out = graph(x, blocks)
        assert ran == [1, 4]
        torch.testing.assert_close(out, by_definition(graph, blocks, x)[0])


def gradients(graph, blocks, x, coefficients):
    graph.zero_grad(), blocks.zero_grad()
    (graph(x, blocks) * coefficients).sum().backward()
    named = [*graph.named_parameters(), *blocks.named_parameters()]
    return {name: p.grad for name, p in named}


def test_derivatives_against_finite_differences():
    graph, blocks, x = stage(n=3, batch=2, gate="soft")  # ψ itself; the others have its gradient
    blocks.eval()
    shape = graph(x, blocks).shape
    coefficients = torch.randn(shape, dtype=torch.double)
    analytic = gradients(graph, blocks, x, coefficients)
    step = 1e-6
    for name, parameter in graph.named_parameters():
        for k in range(min(parameter.numel(), 6)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[k] += sign * step
                    values.append((graph(x, blocks) * coefficients).sum().item())
                    parameter.view(-1)[k] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert analytic[name].view(-1)[k].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_the_gate_s_derivatives_are_those_of_the_spec():
    """dψ/dα, dψ/dτ and dα/dz in closed form, against autograd."""
    z = torch.linspace(-4, 4, 41, dtype=torch.double, requires_grad=True)
    tau = torch.linspace(-1, 1, 41, dtype=torch.double, requires_grad=True)
    alpha = z.sigmoid()
    s = torch.sigmoid(alpha - tau)
    d_alpha = s + alpha * s * (1 - s)
    d_tau = -alpha * s * (1 - s)
    d_z = d_alpha * alpha * (1 - alpha)
    got = torch.autograd.grad((alpha * torch.sigmoid(alpha - tau)).sum(), (z, tau))
    torch.testing.assert_close(got[0], d_z.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got[1], d_tau.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gate", GATES)
def test_tau_learns_slowly_where_edges_close_in_training(gate):
    """Open and closed edges alike have the gradient of ψ, with a tenth of it for τ."""
    alpha = torch.rand(5, 4, dtype=torch.double, requires_grad=True)
    tau = torch.full((4,), 0.5, dtype=torch.double, requires_grad=True)
    weights = DynamicGraph(3, C, gate=gate).weigh(alpha, tau)
    got = torch.autograd.grad(weights.sum(), (alpha, tau))
    s = torch.sigmoid(alpha - tau)
    rate = 0.1 if gate == "straight_through" else 1.0
    torch.testing.assert_close(got[0], s + alpha * s * (1 - s))
    torch.testing.assert_close(got[1], -rate * (alpha * s * (1 - s)).sum(0))
    letter = torch.where(alpha >= tau, alpha, 0)
    wanted = letter if gate == "straight_through" else alpha * s
    torch.testing.assert_close(weights, wanted)


@pytest.mark.parametrize("gate", GATES)
def test_gradients_are_those_of_equations_8_to_10(gate):
    """dL/dweight(i, j) is <gradient at node j's input, x_i>; the chain rule does the rest."""
    graph, blocks, x = stage(n=3, batch=2, gate=gate)
    blocks.eval()
    inputs, features = {}, []
    for k, block in enumerate(blocks):
        if k:
            hook = lambda _m, a, k=k: inputs.__setitem__(k + 1, a[0])  # noqa: E731
            block.conv1.register_forward_pre_hook(hook)
    with torch.no_grad():
        features = [block_parts(blocks[0]).projection(x)]
    graph_out = graph(x, blocks)
    coefficients = torch.randn_like(graph_out)
    loss = (graph_out * coefficients).sum()
    at_inputs = dict(
        zip(inputs, torch.autograd.grad(loss, list(inputs.values()), retain_graph=True))
    )
    at_inputs[4] = coefficients
    loss.backward()
    x0 = features[0]
    for j, edge in ((2, 1), (3, 2), (4, 3)):  # edges 0 → j, output `edge` of router 0
        alpha = graph.routers[0](x0.mean((2, 3))).sigmoid()[:, edge]
        tau = graph.thresholds[j - 1]
        s = torch.sigmoid(alpha - tau)
        inner = (at_inputs[j] * x0).sum((1, 2, 3))
        d_z = inner * (s + alpha * s * (1 - s)) * alpha * (1 - alpha)
        router = graph.routers[0]
        torch.testing.assert_close(router.bias.grad[edge], d_z.sum(), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            router.weight.grad[edge], (d_z[:, None] * x0.mean((2, 3))).sum(0), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tau", (INF, 1e3, 105.0, -INF))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.double))
def test_extreme_thresholds_are_defined_and_leave_an_output(dtype, training, tau, gate):
    """ψ underflows from τ = 105 on in float32."""
    graph, blocks, x = (t.to(dtype) for t in stage(n=3, batch=2, gate=gate))
    graph.train(training), blocks.eval()
    with torch.no_grad():
        graph.thresholds.fill_(tau)
    with record_connectivity(graph) as records:
        out = graph(x, blocks)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in graph.parameters())
    matrix = records[""][0]
    assert matrix.isfinite().all() and out.flatten(1).any(1).all()
    if tau == -INF:  # every edge open, ψ(α) = α
        alpha = graph.routers[0](block_parts(blocks[0]).projection(x).mean((2, 3))).sigmoid()
        torch.testing.assert_close(matrix[:, 1:, 0], alpha.detach())
    elif tau == INF or not training and gate != "soft":
        # The strongest edge into the output stays open: only node 0 can have one.
        assert (matrix != 0).sum() == 2 and matrix[:, -1, 0].all()


def test_one_image_with_everything_closed():
    graph, blocks, x = stage(n=3, batch=3)
    graph.eval(), blocks.eval()
    with torch.no_grad():
        for router in graph.routers:
            nn.init.zeros_(router.weight)
            nn.init.constant_(router.bias, 4)
        # The second image's x_0 alone drives the routers to 0.
        x0 = block_parts(blocks[0]).projection(x).mean((2, 3))
        direction = torch.linalg.lstsq(x0, torch.tensor([[0.0], [-60], [0]]).double()).solution
        graph.routers[0].weight += direction.T
        with record_connectivity(graph) as records:
            out = graph(x, blocks)
    matrix = records[""][0]
    assert (matrix[1] != 0).sum() == 1 and matrix[1, -1, 0] > 0
    assert (matrix[0] != 0).sum() == (matrix[2] != 0).sum() == 10
    torch.testing.assert_close(out, by_definition(graph, blocks, x)[0].detach())
    projected = block_parts(blocks[0]).projection(x)[1]
    torch.testing.assert_close(out[1], matrix[1, -1, 0] * projected)


@pytest.mark.parametrize("edges", ("dynamic", "static", "chain", "er"))
@pytest.mark.parametrize("training", (True, False))
def test_no_images(training, edges):
    blocks = settle(basic_blocks(3))
    graph = DynamicGraph(3, C, edges=edges).double().train(training)
    blocks.train(training)
    before = copy.deepcopy(blocks.state_dict())
    out = graph(torch.zeros(0, 4, 12, 12, dtype=torch.double), blocks)
    assert out.shape == (0, C, 6, 6)
    if training:
        out.sum().backward()
        assert all(p.grad is not None for p in graph.parameters())
    state = blocks.state_dict()
    assert all(state[k].isfinite().all() for k in before)


@pytest.mark.parametrize("sizes", ([(6, 6)] * 3, [(6, 6), (3, 6), (2, 1)]))
def test_routers_pool_the_valid_part(sizes):
    graph, blocks, x = stage(batch=3)
    graph.eval(), blocks.eval()
    with torch.no_grad(), record_connectivity(graph) as records:
        graph(x, blocks, sizes)
        x0 = block_parts(blocks[0]).projection(x)
        pooled = torch.stack([f[:, :h, :w].mean((1, 2)) for f, (h, w) in zip(x0, sizes)])
        alpha = graph.routers[0](pooled).sigmoid()
    torch.testing.assert_close(
        records[""][0][:, 1:-1, 0], torch.where(alpha >= 0.5, alpha, 0)[:, :-1]
    )


BLOCKS = {
    "basic": lambda: basic_blocks(3),
    "identity": lambda: basic_blocks(3, first_shape_changes=False),
    "bottleneck": lambda: nn.ModuleList(
        [
            Bottleneck(
                4, 2, 2, nn.Sequential(nn.Conv2d(4, C, 1, 2, bias=False), nn.BatchNorm2d(C))
            ),
            Bottleneck(C, 2),
        ]
    ),
    "regnet": lambda: nn.ModuleList(
        ResBottleneckBlock(a, C, s, nn.BatchNorm2d, nn.ReLU, 4, 1.0, 0.25)
        for a, s in ((4, 2), (C, 1))
    ),
    "inverted": lambda: nn.ModuleList([InvertedResidual(4, C, 2, 6), InvertedResidual(C, C, 1, 6)]),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_parts_of_a_block_are_the_block(kind):
    torch.manual_seed(0)
    blocks = settle(BLOCKS[kind]()).eval()
    x = torch.randn(2, C if kind == "identity" else 4, 8, 8, dtype=torch.double)
    for block in blocks:
        parts = block_parts(block)
        assert parts.known
        out = parts.branch(x)
        if parts.adds_shortcut:
            out = out + (x if parts.projection is None else parts.projection(x))
        out = out if parts.activation is None else parts.activation(out)
        torch.testing.assert_close(out, block(x), rtol=1e-12, atol=1e-12)
        x = out


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_chain_is_the_base_network(kind):
    torch.manual_seed(0)
    blocks = settle(BLOCKS[kind]()).eval()
    x = torch.randn(2, C if kind == "identity" else 4, 8, 8, dtype=torch.double)
    projection = nn.Conv2d(4, C, 1, 2).double() if kind == "inverted" else None
    graph = DynamicGraph(len(blocks), C, edges="chain", projection=projection)
    wanted = x
    for block in blocks:
        wanted = block(wanted)
    torch.testing.assert_close(graph(x, blocks), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("edges", ("static", "chain", "er", "ba", "ws"))
def test_modes_without_routers_build_none_and_train(edges):
    blocks = settle(basic_blocks(4))
    graph = DynamicGraph(4, C, edges=edges, router_bias=0.0).double()
    assert not any("router" in n or "threshold" in n for n, _ in graph.named_parameters())
    x = torch.randn(2, 4, 8, 8, dtype=torch.double)
    with record_connectivity(graph) as records:
        graph(x, blocks).square().sum().backward()
    missing = [p for p in [*graph.parameters(), *blocks.parameters()] if p.grad is None]
    assert not missing
    matrix = records[""][0]
    assert {tuple(e) for e in matrix[0].nonzero().flip(1).tolist()} == set(graph.wiring)
    if edges != "chain":
        far = [(i, j) for i, j in graph.wiring if edges == "static" and j > i + 1]
        side = torch.tensor(-3.0).sigmoid().item()
        for i, j in graph.wiring:
            start = side if (i, j) in far else 0.5
            assert matrix[:, j, i].tolist() == pytest.approx([start] * 2)
        with torch.no_grad():
            assert not torch.equal(graph.eval()(x, blocks), 0 * graph(x, blocks))


@pytest.mark.parametrize("kind", ("static", "chain", "er", "ba", "ws"))
@pytest.mark.parametrize("n", (1, 2, 3, 4, 6, 23))
def test_wirings_connect_every_block(kind, n):
    edges = wired_edges(kind, n, seed=0)
    assert all(i < j for i, j in edges) and edges == wired_edges(kind, n, seed=0)
    for block in range(1, n + 1):
        assert any(j == block for _, j in edges) and any(i == block for i, _ in edges)
    if kind == "static":
        assert len(edges) == (n + 1) * (n + 2) // 2
    if n == 23 and kind in ("er", "ba", "ws"):
        assert edges != wired_edges(kind, n, seed=1)
        inner = [e for e in edges if 1 <= e[0] and e[1] <= n]
        counts = {"ba": 5 * (23 - 5), "ws": 23 * 2}
        assert len(inner) == counts.get(kind, len(inner))


@pytest.mark.parametrize("bias", (3.0, 0.0, -3.0))
def test_router_bias_opens_or_closes(bias):
    graph, blocks, x = (
        DynamicGraph(3, C, router_bias=bias),
        basic_blocks(3),
        torch.randn(2, 4, 8, 8),
    )
    with record_connectivity(graph) as records:
        graph(x, blocks)
    matrix = records[""][0]
    for entry, start in (((1, 0), bias), ((3, 2), bias), ((2, 0), -3.0), ((4, 1), -3.0)):
        alpha = torch.tensor(start).sigmoid().item()
        assert matrix[(slice(None), *entry)].tolist() == pytest.approx([alpha] * 2, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    (({"edges": "none"}, "none.*dynamic"), ({"gate": "x"}, "x.*straight_through")),
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicGraph(3, C, **options)


def test_recording_ends_with_its_context():
    graph, blocks, x = stage()
    with pytest.raises(KeyError), record_connectivity(nn.ModuleDict({"g": graph})) as records:
        graph(x, blocks)
        raise KeyError
    assert graph.records == []
    assert [m.shape for m in records["g"]] == [(3, 6, 6)]
    graph(x, blocks)
    assert len(records["g"]) == 1
    with record_connectivity(graph) as outer:
        with record_connectivity(graph) as inner:
            graph(x, blocks)
        graph(x, blocks)
    assert len(outer[""]) == 2 and len(inner[""]) == 1


def test_sizes_are_one_per_image():
    graph, blocks, x = stage(batch=3)
    with pytest.raises(ValueError, match="1 entries for 3 images"):
        graph(x, blocks, [(6, 6)])


def test_bf16_autocast_routes_in_float32():
    blocks, graph = basic_blocks(3).eval(), DynamicGraph(3, C)
    x = torch.randn(2, 4, 16, 16)
    with record_connectivity(graph) as records, torch.autocast("cpu", torch.bfloat16):
        out = graph(x, blocks)
    assert out.dtype == torch.bfloat16 and records[""][0].dtype == torch.float32
    assert out.isfinite().all()
