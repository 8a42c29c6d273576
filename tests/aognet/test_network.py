import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from gram_backbones import AOGNet, create_model, list_models
from gram_backbones.aognet import VARIANTS, AOGBlock, AOGNetVariant, AOGStage
from gram_backbones.flops import count_conv_flops, count_parameters
from gram_backbones.fused import unfused
from gram_backbones.grammar import build_graph
from gram_backbones.layers import has_fixed_parts

# spec, "Variants": parameters with 1000 classes, convolution GFLOPs at 224²
TABLE = {
    "aognet_4m": (4_153_507, 0.560),
    "aognet_12m": (11_915_054, 2.358),
    "aognet_40m": (40_333_634, 8.861),
    "aognet_60m": (60_737_302, 14.361),
    "aognet_12m_released": (12_259_099, 2.107),
    "aognet_40m_released": (40_153_004, 7.350),
}
# Table 5: parameters with 10 classes, convolution GFLOPs at 32², both as the paper prints them
CIFAR_TABLE = {
    "aognet_cifar_full": (4_237_651, "4.24", 0.65),
    "aognet_cifar_full_lateral": (4_237_651, "4.24", 0.65),
    "aognet_cifar_pruned": (4_233_088, "4.23", 0.70),
    "aognet_cifar_pruned_lateral": (4_233_088, "4.23", 0.70),
}
# Table 5 at the size of ResNet-20: parameters with 10 classes, multiply-adds at 32²
SMALL_CIFAR_TABLE = {
    "aognet_cifar_s_full": (272_257, 40_504_064),
    "aognet_cifar_s_pruned": (271_653, 40_550_784),
    "aognet_cifar_s_pruned_lateral": (271_653, 40_550_784),
}
# Every kind of stage, and small.
TINY = AOGNetVariant((1, 2, 3, 4), (1, 2, 1, 2), (8, 16, 24, 36, 48))
TINY_PAPER = AOGNetVariant((2, 4, 4, 2), (1, 1, 2, 1), (8, 16, 24, 32, 40))


def images(batch=2, size=64, dtype=torch.float32):
    return torch.randn(batch, 3, size, size, dtype=dtype)


def randomise_norms(model):
    """Scales and statistics as training would leave them: nothing is 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_flops_of_the_table(name):
    with torch.device("meta"):
        model = create_model(name)
    parameters, gflops = TABLE[name]
    assert count_parameters(model) == parameters
    assert count_conv_flops(model) / 1e9 == pytest.approx(gflops, rel=1e-3)


@pytest.mark.grid
@pytest.mark.parametrize("name", CIFAR_TABLE)
def test_cifar_parameters_and_flops_of_table_5(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    parameters, printed, gflops = CIFAR_TABLE[name]
    assert count_parameters(model) == parameters
    assert f"{parameters / 1e6:.2f}" == printed
    assert round(count_conv_flops(model, 32) / 1e9, 2) == gflops


@pytest.mark.parametrize("name", SMALL_CIFAR_TABLE)
def test_small_cifar_networks_have_the_size_of_resnet_20(name):
    model = create_model(name, num_classes=10)
    found = count_parameters(model), count_conv_flops(model, 32)
    assert found == SMALL_CIFAR_TABLE[name]
    assert found == pytest.approx((269_722, 40_550_400), rel=0.01)


def test_small_cifar_rows_differ_in_pruning_and_lateral_connections():
    full, pruned, lateral = (VARIANTS[name] for name in SMALL_CIFAR_TABLE)
    assert replace(pruned, lateral=True) == lateral and not full.lateral
    assert full.words == pruned.words == (2, 4, 4)
    assert set(full.pruning) == {None} and None not in pruned.pruning


def test_cifar_rows_are_two_structures_with_and_without_lateral_connections():
    for kind, nodes, pruning in (("full", 30, {None}), ("pruned", 21, {"keep_first", "keep_last"})):
        plain, lateral = VARIANTS[f"aognet_cifar_{kind}"], VARIANTS[f"aognet_cifar_{kind}_lateral"]
        assert not plain.lateral and replace(plain, lateral=True) == lateral
        assert set(plain.pruning) == pruning
        assert plain.words == (4, 4, 4) and not any(width % 4 for width in plain.channels)
        assert len(plain.graph(0).nodes) == nodes  # spec, "And-Or graph of a block over N words"


def test_the_cifar_stem_is_one_convolution_at_full_resolution():
    model = AOGNet(replace(TINY, stem="cifar"), out_features=("stem", "res2", "res5")).eval()
    convs = [m for m in model.stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.stride) for m in convs] == [((3, 3), (1, 1))]
    assert model.feature_strides == {"stem": 1, "res2": 1, "res3": 2, "res4": 4, "res5": 8}
    assert model.size_divisibility == 8
    features = model(images(1, 32))
    assert [f.shape[-1] for f in features.values()] == [32, 32, 4]
    with pytest.raises(ValueError, match="stem is 'patch'; allowed are .*cifar.*imagenet"):
        replace(TINY, stem="patch")


def test_the_table_covers_all_variants():
    assert (
        {*TABLE, *CIFAR_TABLE, *SMALL_CIFAR_TABLE} == set(VARIANTS) == set(list_models("aognet_*"))
    )


@pytest.mark.grid
@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = randomise_norms(create_model(name, num_classes=5))
    model(images(size=32)).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
def test_features_have_the_stated_channels_and_strides(name):
    last = create_model(name, features_only=True).stage_names[-1]  # res4 in CIFAR's variants
    model = create_model(name, features_only=True, out_features=("stem", "res2", last)).eval()
    with torch.no_grad():
        features = model(images(1, 64))
    assert list(features) == ["stem", "res2", last]
    for key, feature in features.items():
        side = 64 // model.feature_strides[key]
        assert feature.shape == (1, model.feature_channels[key], side, side)


def test_features_by_index_are_a_tuple_of_the_same_maps():
    by_name = AOGNet(TINY, out_features=("res3", "res5")).eval()
    by_index = AOGNet(TINY, out_indices=(4, 2)).eval()
    by_index.load_state_dict(by_name.state_dict())
    x = images()
    with torch.no_grad():
        named, indexed = by_name(x), by_index(x)
    assert isinstance(indexed, tuple)
    assert all(torch.equal(a, b) for a, b in zip(named.values(), indexed, strict=True))


@pytest.mark.parametrize("size", ((75, 101), (97, 64), (32, 33)))
def test_odd_sizes_floor(size):
    model = AOGNet(TINY).eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, *size))
    for name, feature in features.items():
        # The first convolution rounds up, every pooling down.
        sides = [(side + 1) // 2 // 2 for side in size]
        for _ in range(int(name[3]) - 2):
            sides = [side // 2 for side in sides]
        assert list(feature.shape[2:]) == sides


def test_stages_beyond_the_last_feature_are_not_built():
    model = AOGNet(TINY, out_features=("res3",))
    assert not hasattr(model, "res4") and not hasattr(model, "fc")
    assert model.size_divisibility == 8
    assert list(model(images())) == ["res3"]


def test_classifier_and_pooled_features():
    logits = AOGNet(TINY, num_classes=7)(images())
    assert logits.shape == (2, 7)
    model = AOGNet(TINY, num_classes=0).eval()
    pooled = model(x := images())
    for stage in (model.stem, model.res2, model.res3, model.res4, model.res5):
        x = stage(x)
    torch.testing.assert_close(pooled, x.mean((2, 3)))


def block_by_definition(block: AOGBlock, x: torch.Tensor) -> torch.Tensor:
    """Section 4.1 read literally, node by node from the root: no steps, no sharing."""
    graph, done = block.graph, {}

    def out(i):
        if i not in done:
            v = graph.nodes[i]
            if v.type == "T":
                words = x[:, block.in_bounds[v.span[0]] : block.in_bounds[v.span[1] + 1]]
                conv = skip = words
            else:
                ids = sorted(v.children) if v.type == "AND" and graph.concat_by_id else v.children
                kids = [out(k) for k in ids]
                ratios = [v.paths_to_root / graph.nodes[k].paths_to_root for k in ids]
                scaled = [kid * ratio for kid, ratio in zip(kids, ratios)]
                conv = torch.cat(kids, 1) if v.type == "AND" else sum(kids)
                skip = torch.cat(scaled, 1) if v.type == "AND" else sum(scaled)
                if v.lateral is not None:
                    conv = conv + out(v.lateral)
                    ratio = v.paths_to_root / graph.nodes[v.lateral].paths_to_root
                    if not v.lateral_shares_parent:
                        skip = skip + out(v.lateral) * (ratio if graph.scale_lateral_skip else 1)
            op = block.ops[i]
            y = op.conv3(op.conv2(op.conv1(conv)))
            done[i] = torch.relu(y + (skip if op.shortcut is None else op.shortcut(skip)))
        return done[i]

    return torch.relu(block.norm(out(0)))


@pytest.mark.parametrize("learn", (False, True))
@pytest.mark.parametrize("switches", ({}, {"scale_lateral_skip": False, "concat_by_id": True}))
@pytest.mark.parametrize("pruning", (None, "keep_first", "keep_last"))
@pytest.mark.parametrize("n", (1, 2, 3, 4, 5))
def test_a_block_computes_its_definition(n, pruning, switches, learn):
    graph = build_graph(n, pruning=pruning, **switches)
    block = AOGBlock(2 * n + 1, 4 * n, graph, learn_scales=learn).double()
    x = torch.randn(1, 2 * n + 1, 5, 6, dtype=torch.double)
    randomise_norms(block).eval()
    rtol = 1e-6 if learn else 1e-12  # learned scales are built in float32
    with torch.no_grad():
        torch.testing.assert_close(block(x), block_by_definition(block, x), rtol=rtol, atol=rtol)


def test_words_differ_by_at_most_one_larger_first():
    block = AOGBlock(10, 16, build_graph(4))
    assert block.in_bounds == [0, 3, 6, 8, 10]


def test_without_lateral_connections_any_width_goes():
    block = AOGBlock(7, 10, build_graph(4, lateral=False))
    assert block(torch.randn(2, 7, 4, 4)).shape == (2, 10, 4, 4)


def test_learned_scales_are_one_scalar_per_skip_edge():
    fixed, learned = (AOGNet(TINY_PAPER, learn_scales=flag) for flag in (False, True))
    steps = [s for m in fixed.modules() if isinstance(m, AOGBlock) for s in m.steps]
    edges = sum(len(step.skip_terms) for step in steps)
    assert count_parameters(learned) - count_parameters(fixed) == edges
    blocks = [m for m in learned.modules() if isinstance(m, AOGBlock)]
    learned(images())["res5"].square().sum().backward()
    assert all(block.scales.grad.abs().gt(0).any() for block in blocks)
    with torch.no_grad():
        before = learned.eval()(x := images())["res5"]
        blocks[1].scales *= 1.5
        assert not torch.allclose(before, learned(x)["res5"])


def test_zero_scale_initialisation():
    model = AOGNet(TINY)
    zero = {n for n, p in model.named_parameters() if not p.any() and n.endswith("1.weight")}
    assert zero and all(".conv3.1." in name for name in zero)
    assert len(zero) == sum(".conv3.1.weight" in n for n, _ in model.named_parameters())
    kept = AOGNet(TINY, zero_init_last=False)
    assert all(p.any() for n, p in kept.named_parameters() if n.endswith("1.weight"))
    # A frozen scale could never leave 0.
    frozen = AOGNet(TINY, norm="FrozenBN")
    assert all(b.all() for n, b in frozen.named_buffers() if n.endswith("1.weight"))


@pytest.mark.grid
@pytest.mark.parametrize("dropout", (0.0, 0.5))
def test_checkpointing_gives_identical_gradients_and_buffers(dropout):
    plain = randomise_norms(AOGNet(TINY_PAPER, dropout=dropout))
    cheap = AOGNet(TINY_PAPER, dropout=dropout, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    x = images()
    for model in (plain, cheap):
        torch.manual_seed(1)
        for _ in range(2):
            model(x)["res5"].square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), cheap.parameters()))
    kept, state = plain.state_dict(), cheap.state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    assert state["res2.blocks.0.norm.num_batches_tracked"] == 2


def test_checkpointing_recomputes():
    calls = []
    model = AOGNet(TINY_PAPER, with_cp=True)
    model.res4.blocks[0].ops[0].conv2.register_forward_hook(lambda *_: calls.append(1))
    loss = model(images())["res5"].sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(images())
    assert len(calls) == 3


def test_checkpointing_recomputes_in_the_form_of_the_forward_pass():
    """Bug: a backward pass after unfused() had ended recomputed other activations, and raised."""
    model = AOGNet(TINY_PAPER, with_cp=True, norm="FrozenBN")
    with unfused():
        loss = model(images())["res5"].square().sum()
    loss.backward()
    assert model.res4.blocks[0].ops[0].conv2[0].weight.grad.isfinite().all()


def test_checkpointing_recomputes_at_every_backward_pass():
    """Bug: a second one through the same graph entered a context that had ended."""
    model = AOGNet(TINY_PAPER, with_cp=True)
    loss = model(images())["res5"].square().sum()
    weight = model.stem[0][0].weight
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()


def test_checkpointing_saves_memory():
    def saved_bytes(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(images(1, 64))
        return total

    assert saved_bytes(AOGNet(TINY_PAPER, with_cp=True)) < saved_bytes(AOGNet(TINY_PAPER)) / 3


def test_features_are_released_when_no_later_step_needs_them():
    block = AOGBlock(32, 32, build_graph(4)).eval()
    outputs, peak = weakref.WeakSet(), 0

    def watch(_module, _inputs, output):
        nonlocal peak
        outputs.add(output)
        peak = max(peak, len(outputs))

    for op in block.ops:
        op.register_forward_hook(watch)
    with torch.no_grad():
        block(torch.randn(1, 32, 4, 4))
    needed, alive = 0, set()
    for step in block.steps:
        alive.add(step.node.id)
        needed = max(needed, len(alive))
        alive -= set(step.release)
    assert needed < len(block.steps) / 2
    # One more may live for a moment: an input that is still a name while its step ends.
    assert peak <= needed + 1


@pytest.mark.parametrize("name", ("aognet_4m", "aognet_12m_released"))
def test_bf16_autocast(name):
    model = randomise_norms(create_model(name, features_only=True))
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images(2, 32))
        loss = sum(f.float().square().mean() for f in features.values())
    loss.backward()
    assert all(f.isfinite().all() for f in features.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("learn_scales", (False, True))
def test_bf16_autocast_is_close_to_float32(learn_scales):
    model = AOGNet(TINY_PAPER, learn_scales=learn_scales).eval()
    x = images()
    with torch.no_grad():
        exact = model(x)["res5"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)["res5"].float()
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_dropout_is_on_in_the_last_two_stages_of_a_classifier_in_training():
    rates = {
        name: {m.dropout for m in getattr(model, name).modules() if hasattr(m, "dropout")}
        for model in [AOGNet(TINY, num_classes=3)]
        for name in model.stage_names
    }
    assert rates == {"res2": {0.0}, "res3": {0.0}, "res4": {0.1}, "res5": {0.1}}
    three = AOGNet("aognet_cifar_pruned", num_classes=3)
    assert {op.dropout for op in three.res2.blocks[0].ops} == {0.0}
    assert {op.dropout for op in (*three.res3.blocks[0].ops, *three.res4.blocks[0].ops)} == {0.1}
    features = AOGNet(TINY)
    assert {m.dropout for m in features.modules() if hasattr(m, "dropout")} == {0.0}
    x = torch.randn(4, 24, 4, 4)
    stage = randomise_norms(AOGStage(TINY, 2, dropout=0.5))
    stage.train()
    assert not torch.equal(stage(x), stage(x))
    stage.eval()
    assert torch.equal(stage(x), stage(x))


@pytest.mark.parametrize("norm", ("BN", "GN", "FrozenBN", "SyncBN", nn.InstanceNorm2d))
def test_norms(norm):
    model = AOGNet(TINY, norm=norm)
    assert any("Norm" in type(m).__name__ for m in model.modules())
    assert model.eval()(images())["res5"].isfinite().all()


@pytest.mark.grid
@pytest.mark.parametrize("frozen", (-1, 0, 1, 3))
def test_frozen_stages_stay_as_they_are(frozen):
    model = AOGNet(TINY, frozen_stages=frozen)
    names = ("stem", "res2", "res3", "res4", "res5")[: frozen + 1]
    for mode in (None, True, False, True):
        if mode is not None:
            model.train(mode)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad is (name.split(".")[0] not in names)
        for name in names:
            assert not any(m.training for m in getattr(model, name).modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(images())["res5"].square().sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        if name.split(".")[0] in names:
            assert torch.equal(tensor, before[name])
    free = "res5.blocks.0.norm.running_mean"
    assert not torch.equal(model.state_dict()[free], before[free])


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(variant="aognet_13m"), "aognet_13m.*12m_released"),
        (dict(variant=TINY, out_features=("res6",)), "res6.*res5"),
        (dict(variant=TINY, out_features=("res2", "res2")), "distinct"),
        (dict(variant=TINY, out_features=()), "allowed are"),
        (dict(variant=TINY, out_features=(1, 2)), "distinct names .*: 1 is 'res2'"),
        (dict(variant=TINY, out_features=(0, "res3")), "allowed are"),
        (dict(variant=TINY, out_indices=(5,)), r"\(1, 2, 3, 4\)"),
        (dict(variant=TINY, out_indices=(0, 1)), r"\(1, 2, 3, 4\).* also 'stem'"),
        (dict(variant=TINY, out_indices=(1,), out_features=("res2",)), "give one of them"),
        (dict(variant=TINY, out_features=("res3",), frozen_stages=3), "is 3.*-1 to 2"),
        (dict(variant=TINY, frozen_stages=-2), "frozen_stages is -2"),
        (dict(variant=TINY, norm="XN"), "XN.*FrozenBN"),
        (dict(variant=TINY, num_classes=3, out_features=("res2",)), "num_classes"),
    ),
)
def test_bad_arguments_are_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        AOGNet(**arguments)


def test_an_impossible_width_is_named():
    variant = AOGNetVariant((2, 4, 4, 2), (1, 1, 1, 1), (16, 32, 66, 128, 256))
    with pytest.raises(ValueError, match="over 4 words.*66 output channels.*64 or 68"):
        AOGNet(variant)
    with pytest.raises(ValueError, match="3 channels cannot be cut into 4 words"):
        AOGBlock(3, 8, build_graph(4))


@pytest.mark.parametrize(
    "row",
    (
        dict(words=(2, 4), blocks=(1,), channels=(8, 8, 8)),
        dict(words=(2,), blocks=(1,), channels=(8,)),
        dict(words=(2,), blocks=(0,), channels=(8, 8)),
        dict(words=(2,) * 5, blocks=(1,) * 5, channels=(8,) * 6),
    ),
)
def test_a_row_that_does_not_fit_itself_is_refused(row):
    with pytest.raises(ValueError):
        AOGNetVariant(**row, pruning=(None,) * len(row["words"]))


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="aognet_5m.*aognet_4m"):
        create_model("aognet_5m")
    assert list_models("*12m") == ["aognet_12m"]


@pytest.mark.parametrize(
    ("norm", "fixed"),
    (
        (nn.BatchNorm2d(4), False),
        (nn.InstanceNorm2d(4), False),
        (nn.BatchNorm2d(4).eval(), True),
        (FrozenBatchNorm2d(4), True),
        (nn.BatchNorm2d(4).requires_grad_(False), True),
    ),
)
def test_fixed_parts_are_frozen_parameters_and_statistics(norm, fixed):
    assert has_fixed_parts(nn.Sequential(nn.Conv2d(3, 4, 1), norm)) is fixed


@pytest.mark.grid
@pytest.mark.parametrize("options", ({"num_classes": 3}, {"features_only": True}))
def test_a_symbolic_trace_computes_the_same(options):
    """What torchvision's feature extractor and fx's quantisation start with."""
    model = create_model("aognet_4m", **options).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, wanted = torch.fx.symbolic_trace(model)(x), model(x)
        inner = create_feature_extractor(model, ["res3"])(x)["res3"]
        assert inner.shape == (2, 120, 8, 8)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # a trace is not fused
