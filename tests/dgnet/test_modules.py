"""DG-Net's blocks and routers as modules: hooks, subclasses, copies, memory, extreme values."""

import copy
import gc
from collections import Counter

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from gram_backbones import DGNet, record_connectivity
from gram_backbones.dgnet.blocks import BlockParts, block_parts
from gram_backbones.dgnet.graph import DynamicGraph, training_gate
from gram_backbones.dgnet.rewire import rewire
from gram_backbones.folding import forget_fused
from tests.dgnet.open_edges import GRADIENTS, SMALL, check_close, settle, small_network
from tests.dgnet.test_graph import BLOCKS, C, basic_blocks, spread

MODES = pytest.mark.parametrize("mode", ("no_grad", "inference_mode", "eval", "train"))


def run(mode, model, *args):
    """One forward pass in a mode, BN with fixed statistics."""
    model.eval()
    if mode == "train":
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    if mode == "inference_mode":
        with torch.inference_mode():
            return model(*args)
    with torch.set_grad_enabled(mode != "no_grad"):
        return model(*args)


def all_open(variant, **options):
    """A network with every edge open."""
    model = settle(DGNet(variant, **options))
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, -1)
    return model


def blocks_and_routers(model):
    """Names and modules of all blocks and all routers."""
    named = {name: model.get_submodule(name) for ns in model.block_names.values() for name in ns}
    for key, graph in model.graphs.items():
        named |= {f"graphs.{key}.routers.{i}": r for i, r in enumerate(graph.routers)}
    return named


@pytest.mark.grid
@MODES
@pytest.mark.parametrize("with_cp", (False, True), ids=("", "with_cp"))
@pytest.mark.parametrize("kind", SMALL)
def test_hooks_on_every_block_and_router_fire(kind, with_cp, mode):
    model = all_open(SMALL[kind], with_cp=with_cp)
    named = blocks_and_routers(model)
    before, after = Counter(), Counter()
    for name, module in named.items():
        module.register_forward_pre_hook(lambda _m, _args, name=name: before.update([name]))
        module.register_forward_hook(lambda _m, _args, _out, name=name: after.update([name]))
    run(mode, model, torch.randn(2, 3, 64, 64))
    once = dict.fromkeys(named, 1)
    assert before == once and after == once


@pytest.mark.grid
@MODES
@pytest.mark.parametrize("name", ("layer1.0", "layer1.1", "layer2.0", "layer2.2"))
def test_hooks_on_a_block_get_what_the_graph_computes_with(name, mode):
    """A hook sees the block's input and output, and may replace the output."""
    model = all_open(SMALL["basic"], out_indices=(1, 2))
    block = model.get_submodule(name)
    x = torch.randn(2, 3, 64, 64)
    plain = run(mode, model, x)
    seen = []
    block.register_forward_hook(lambda _m, args, out: seen.append((args[0].clone(), out.clone())))
    check_close(run(mode, model, x), plain)
    given, out = seen[0]
    assert out.shape[0] == given.shape[0] == 2 and (out >= 0).all()
    block.register_forward_hook(lambda _m, _args, out: out * 0)
    zeroed = run(mode, model, x)
    assert not torch.equal(zeroed[1], plain[1])
    check_close(zeroed, run("eval", model, x))


@MODES
def test_a_router_s_hook_may_close_its_edges(mode):
    model = all_open(SMALL["basic"], side_bias=3.0)
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, 0.5)
    graph = model.graphs["1"]
    graph.routers[1].register_forward_hook(lambda _m, _args, z: torch.full_like(z, -20.0))
    with record_connectivity(model) as records:
        run(mode, model, torch.randn(2, 3, 64, 64))
    matrix = records["graphs.1"][0]
    assert matrix[:, 2:, 1].abs().max() < 1e-6 < matrix[:, 1:, 0].min()


def own_forward(block_type):
    """A subclass of a torchvision block with a scale of its own, which counts its calls."""

    class Own(block_type):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.scale = nn.Parameter(torch.tensor(0.5))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.scale * super().forward(x)

    return Own


def own_blocks(kind):
    """A stage of two such blocks, the first with stride 2, and the stage's projection."""
    bn = nn.BatchNorm2d
    down = nn.Sequential(nn.Conv2d(4, C, 1, 2, bias=False), bn(C))
    if kind is BasicBlock:
        blocks = [own_forward(kind)(4, C, 2, down), own_forward(kind)(C, C)]
    elif kind is Bottleneck:
        blocks = [own_forward(kind)(4, C // 4, 2, down), own_forward(kind)(C, C // 4)]
    elif kind is ResBottleneckBlock:
        blocks = [own_forward(kind)(a, C, s, bn, nn.ReLU, 4) for a, s in ((4, 2), (C, 1))]
    else:
        blocks = [own_forward(kind)(a, C, s, 6) for a, s in ((4, 2), (C, 1))]
    return settle(nn.ModuleList(blocks)).eval()


OWN = pytest.mark.parametrize(
    "kind", (BasicBlock, Bottleneck, ResBottleneckBlock, InvertedResidual), ids=lambda k: k.__name__
)


@OWN
def test_a_subclass_runs_with_its_own_forward(kind):
    blocks = own_blocks(kind)
    x = torch.randn(2, 4, 16, 16)
    wanted = blocks[1](blocks[0](x))
    check_close(DynamicGraph(2, C, edges="chain")(x, blocks), wanted)


@OWN
@MODES
def test_a_dynamic_graph_calls_a_subclass_as_it_is(kind, mode):
    blocks = own_blocks(kind)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*blocks))
    model = rewire(network, ("1",), torch.zeros(1, 3, 16, 16))
    nn.init.constant_(model[1].graph.thresholds, -1)
    for block in model[1]:
        block.calls = 0
    x = torch.randn(2, 3, 16, 16)
    out = run(mode, model, x)
    assert [block.calls for block in model[1]] == [1, 1]
    if mode == "train":
        out.sum().backward()
        assert all(block.scale.grad for block in model[1])


class LeakyActivation(nn.ReLU):
    """A ReLU by type alone."""

    def forward(self, x):
        return nn.functional.leaky_relu(x, 0.5)


def replace_activation(blocks):
    for block in blocks:
        block.relu = LeakyActivation()


def hook_activation(blocks):
    for block in blocks:
        block.relu.register_forward_hook(lambda _m, _args, out: out * 0.5 + 0.1)


def hook_activation_s_input(blocks):
    for block in blocks:
        block.relu.register_forward_pre_hook(lambda _m, args: (args[0] - 0.2,))


CHANGES = pytest.mark.parametrize(
    "change", (replace_activation, hook_activation, hook_activation_s_input)
)


@CHANGES
@pytest.mark.parametrize("mode", ("no_grad", "inference_mode"))
def test_a_block_s_own_last_activation_counts(change, mode):
    blocks = settle(basic_blocks(3))
    network = nn.ModuleList([DynamicGraph(3, C), blocks]).eval()
    graph = network[0]
    nn.init.constant_(graph.thresholds, -1)
    x = torch.randn(2, 4, 16, 16)
    plain = graph(x, blocks)
    change(blocks)
    wanted = graph(x, blocks)
    assert not torch.allclose(wanted, plain)
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
        check_close(graph(x, blocks), wanted)


@CHANGES
def test_the_chain_runs_a_block_s_own_last_activation(change):
    blocks = settle(basic_blocks(3)).eval()
    change(blocks)
    x = torch.randn(2, 4, 16, 16)
    wanted = x
    for block in blocks:
        wanted = block(wanted)
    with torch.no_grad():
        check_close(DynamicGraph(3, C, edges="chain").eval()(x, blocks), wanted)


class PassOn(nn.Module):
    """A block of a registered type without shortcut, which returns its very input."""

    def forward(self, x):
        return x


@block_parts.register
def _(block: PassOn) -> BlockParts:
    return BlockParts(lambda x: x, adds_shortcut=False)


@pytest.mark.parametrize("places", ((0,), (0, 1), (0, 2), (2,)))
@pytest.mark.parametrize("mode", ("no_grad", "inference_mode"))
def test_a_registered_block_may_return_its_input(mode, places):
    blocks = settle(basic_blocks(3, first_shape_changes=False)).eval()
    for place in places:
        blocks[place] = PassOn()
    graph = DynamicGraph(3, C).eval()
    nn.init.constant_(graph.thresholds, -1)
    x = torch.randn(2, C, 8, 8)
    kept = x.clone()
    wanted = graph(x, blocks)
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
        check_close(graph(x, blocks), wanted)
    assert torch.equal(x, kept)


@MODES
@pytest.mark.parametrize("first_shape_changes", (True, False), ids=("strided", "plain"))
def test_what_a_hook_keeps_stays_as_it_was(first_shape_changes, mode):
    """Inputs of blocks and of their convolutions, and the blocks' outputs."""
    blocks = settle(basic_blocks(4, first_shape_changes))
    network = nn.ModuleList([DynamicGraph(4, C), blocks])
    graph = network[0]
    network.forward = lambda x: graph(x, blocks)
    nn.init.constant_(graph.thresholds, -1)
    kept = []

    def keep(name, tensor):
        kept.append((name, tensor, tensor.clone()))

    for name, module in blocks.named_modules():
        if isinstance(module, (nn.Conv2d, BasicBlock)):
            module.register_forward_pre_hook(lambda _m, args, name=name: keep(name, args[0]))
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda _m, _args, out, name=name: keep(name, out))
    run(mode, network, torch.randn(2, 4 if first_shape_changes else C, 12, 12))
    assert {name for name, _, _ in kept} >= {f"{k}.conv{i}" for k in range(4) for i in (1, 2)}
    assert not [name for name, tensor, copied in kept if not torch.equal(tensor, copied)]


def live_tensors():
    """All tensors of this process that have a storage; other tests' wrappers may have none."""
    found = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    return [t for t in found if torch._C._has_storage(t)]


def new_storages(known):
    """Bytes of every storage, by its address, that tensors hold of which ``known`` has none."""
    old = {t.untyped_storage()._cdata for t in known}
    storages = {s._cdata: s.nbytes() for s in (t.untyped_storage() for t in live_tensors())}
    return {address: size for address, size in storages.items() if address not in old}


@pytest.mark.grid
@MODES
@pytest.mark.parametrize("size", (64, 160))
def test_nothing_stays_alive_after_the_model_is_gone(size, mode):
    known = live_tensors()
    model = DGNet(SMALL["bottleneck"])
    out = run(mode, model, torch.randn(2, 3, size, size))
    del model, out
    gc.collect()
    assert not new_storages(known)


@pytest.mark.grid
@MODES
def test_no_map_is_kept_between_calls(mode):
    """Nor does one wait for the garbage collector."""
    model = DGNet(SMALL["basic"], out_indices=(1, 2))
    x = torch.randn(2, 3, 160, 160)
    known = live_tensors()
    gc.disable()
    try:
        for _ in range(2):
            run(mode, model, x)
        forget_fused(model)  # its weights with the norms are no maps
        kept = sum(new_storages(known).values())
    finally:
        gc.enable()
    assert kept < 2**14  # a map of res3 alone takes 2 · 128 · 20 · 20 · 4 bytes


def test_a_copy_made_while_recording_records_nothing():
    model = DGNet(SMALL["basic"], out_indices=(1, 2)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), record_connectivity(model) as records:
        model(x)
        twin = copy.deepcopy(model)
        twin(x)
        assert [len(matrices) for matrices in records.values()] == [1, 1]
        with record_connectivity(twin) as own:
            twin(x)
        assert [len(matrices) for matrices in records.values()] == [1, 1]
    assert [len(matrices) for matrices in own.values()] == [1, 1]
    assert torch.equal(own["graphs.0"][0], records["graphs.0"][0])
    known = live_tensors()
    with torch.no_grad():
        for _ in range(3):
            twin(x)
    gc.collect()
    assert not new_storages(known)


def test_a_copy_made_while_recording_holds_no_records():
    """A copy holds parameters and buffers, no matrix."""
    model = DGNet(SMALL["basic"], out_indices=(1, 2)).eval()
    with torch.no_grad(), record_connectivity(model) as records:
        for _ in range(5):
            model(torch.randn(4, 3, 64, 64))
        known = live_tensors()
        twin = copy.deepcopy(model)
        gc.collect()
        assert len(new_storages(known)) == len(twin.state_dict())
    assert [len(matrices) for matrices in records.values()] == [5, 5]


# Copies, replicas, statistics


@GRADIENTS
def test_a_replica_computes_what_the_model_does(grad):
    """What ``nn.DataParallel`` runs has its tensors as attributes and no list of parameters."""
    model, images = small_network()
    replica = copy.deepcopy(model)
    for module in replica.modules():
        for tensors in (module._parameters, module._buffers):
            for name in list(tensors):
                value = tensors.pop(name)
                object.__setattr__(module, name, value)
    x = torch.cat(images)
    with torch.set_grad_enabled(grad):
        check_close(replica(x), model(x))


def test_statistics_estimated_anew_are_of_all_images():
    """Norms in training mode, the rest in evaluation: what precise BN runs."""
    model, images = small_network()
    x = torch.cat(images)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    def statistics(grad):
        twin = copy.deepcopy(model)
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        with torch.set_grad_enabled(grad):
            out = twin(x)
        found = [m.running_mean for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
        return [*out, *found]

    assert len(norms) > 4
    check_close(statistics(False), statistics(True))


def test_a_copy_made_under_training_s_gate_skips_again():
    model, _ = small_network()
    with training_gate(model):
        twin = copy.deepcopy(model)
    assert not any(graph.gates_as_in_training for graph in twin.graphs.values())


def test_half_precision_leaves_an_output_where_everything_is_closed():
    model = settle(
        DGNet(SMALL["basic"], out_indices=(1, 2), router_bias=-20.0, side_bias=-20.0)
    ).eval()
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, 2.0)
    with torch.no_grad():
        for out in model.half()(torch.randn(1, 3, 64, 64).half()):
            assert out.abs().max() > 0


@MODES
@pytest.mark.parametrize("tau", (105.0, 1e4, float("inf")))
def test_no_threshold_makes_the_output_zero(tau, mode):
    """Above every α, the strongest edge into the output stays open: for every image."""
    model = settle(DGNet(SMALL["basic"], out_indices=(1, 2)))
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, tau)
    features = run(mode, model, torch.randn(3, 3, 64, 64))
    for feature in features:
        assert feature.isfinite().all()
        assert feature.flatten(1).any(1).all()


@pytest.mark.grid
@MODES
@pytest.mark.parametrize("sizes", ([(0, 0)] * 3, [(0, 0), (64, 64), (0, 30)]))
def test_an_image_without_valid_part_gives_finite_features(sizes, mode):
    model, _ = small_network()
    x = torch.randn(3, 3, 64, 64)
    with record_connectivity(model) as records:
        features = run(mode, model, x, sizes)
    matrices = [matrix for found in records.values() for matrix in found]
    assert all(tensor.isfinite().all() for tensor in (*features, *matrices))
    if sizes[1] == (64, 64):  # the others leave it alone
        check_close([f[1:2] for f in features], run(mode, model, x[1:2]))
    if mode == "train":
        sum(feature.square().mean() for feature in features).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@GRADIENTS
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_a_stage_takes_empty_valid_sizes(training, grad):
    graph, blocks = spread(DynamicGraph(2, C)), settle(basic_blocks(2)).double().eval()
    graph.train(training)
    x = torch.randn(2, 4, 12, 12, dtype=torch.double)
    with torch.set_grad_enabled(grad), record_connectivity(graph) as records:
        out = graph(x, blocks, [(0, 0), (0, 4)])
    assert out.isfinite().all() and records[""][0].isfinite().all()


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_every_kind_are_called_as_modules(kind):
    blocks = settle(BLOCKS[kind]()).eval()
    projection = nn.Conv2d(4, C, 1, 2) if kind == "inverted" else None
    graph = DynamicGraph(len(blocks), C, projection=projection).eval()
    called = []
    for k, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _args, _out, k=k: called.append(k))
    with torch.no_grad():
        graph(torch.randn(2, C if kind == "identity" else 4, 8, 8), blocks)
    assert called == list(range(len(blocks)))
