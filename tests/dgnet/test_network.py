"""DG-Net as a network: counts, starting from the base network, features, freezing, rewiring."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.io import ImageReadMode, read_image
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms.functional import resize

from gram_backbones import DGNet, create_model, list_models, load_weights, record_connectivity
from gram_backbones.dgnet import VARIANTS, DGNetVariant, DGStage
from gram_backbones.dgnet.graph import DynamicGraph
from gram_backbones.dgnet.rewire import rewire
from gram_backbones.dgnet.variants import RESNET
from gram_backbones.dgnet.wiring import EDGES
from gram_backbones.flops import count_conv_flops, count_parameters
from gram_backbones.preprocessing import IMAGENET_RGB
from tests.conftest import DATASETS, needs_coco

# spec: parameters of the base network and of DG-Net, classifier included
TABLE = {
    "dgnet_r18": (11_689_512, 11_695_308),
    "dgnet_r34": (21_797_672, 21_812_603),
    "dgnet_r50": (25_557_032, 25_616_507),
    "dgnet_r101": (44_549_160, 44_887_452),
    "dgnet_x50": (25_028_904, 25_088_379),
    "dgnet_mobilenet_v2": (3_504_872, 3_587_785),
    "dgnet_regnetx_600m": (6_196_040, 6_221_282),
    "dgnet_regnetx_1600m": (9_190_136, 9_225_603),
    "dgnet_regnety_600m": (6_055_160, 6_074_843),
    "dgnet_cifar_r20": (269_722, 270_884),
}


def tiny_resnet(norm_layer=nn.BatchNorm2d):
    network = ResNet(BasicBlock, [2, 3, 1, 2], num_classes=5, norm_layer=norm_layer)
    return network


TINY = DGNetVariant(tiny_resnet, RESNET)


def base_of(name):
    return VARIANTS[name].base(norm_layer=nn.BatchNorm2d)


def classifier(name, **options):
    """A model with as many classes as its base network has."""
    return create_model(name, num_classes=10 if "cifar" in name else 1000, **options)


def settle(model, low=0.3, high=0.6):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, low, high)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def images(batch=2, size=64, dtype=torch.float32):
    return torch.randn(batch, 3, size, size, dtype=dtype)


def test_the_table_covers_all_variants():
    assert set(TABLE) == set(VARIANTS) == set(list_models("dgnet_*"))


@pytest.mark.grid
@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_flops(name):
    with torch.device("meta"):
        base = base_of(name)
        parameters = count_parameters(base), count_parameters(classifier(name))
    assert parameters == TABLE[name]
    growth = count_conv_flops(classifier(name)) / count_conv_flops(base_of(name)) - 1
    if name == "dgnet_mobilenet_v2":
        assert growth == pytest.approx(0.044, abs=0.001)
    else:
        assert 0 <= growth < 0.01


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "millions"), (("dgnet_r18", 12.8), ("dgnet_r50", 38.5), ("dgnet_x50", 77.1))
)
def test_a_projected_first_stage_has_table_1_s_flops(name, millions):
    plain, wide = (DGNet(name, num_classes=1000, project_first=wide) for wide in (False, True))
    more = count_conv_flops(wide) - count_conv_flops(plain)
    assert more / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.grid
@pytest.mark.parametrize("edges", ("dynamic", "chain"))
@pytest.mark.parametrize("name", ("dgnet_r18", "dgnet_r50"))
def test_a_projected_first_stage_learns_whole(name, edges):
    model = DGNet(name, num_classes=5, project_first=True, edges=edges)
    x = images()
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    settle(model, 0.3, 0.9)
    with torch.no_grad():
        skipping = model(x)
    torch.testing.assert_close(skipping, model(x), rtol=1e-4, atol=1e-4)


def test_only_resnets_have_a_projected_first_stage():
    with pytest.raises(ValueError, match="project_first is for ResNets, not for a mobilenet_v2"):
        DGNet("dgnet_mobilenet_v2", project_first=True)


def test_the_cifar_network_is_resnet_20():
    """He et al., section 4.2: 20 layers, 0.27 M parameters, shortcuts without parameters."""
    base = base_of("dgnet_cifar_r20")
    assert count_conv_flops(base, 32) == 40_550_400
    convs = [m for m in base.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) + 1 == 20 and {m.kernel_size for m in convs} == {(3, 3)}
    # Per stage of n = 3 blocks: 10 router outputs, each with a bias, and 4 thresholds.
    added = sum(10 * (channels + 1) + 4 for channels in (16, 32, 64))
    assert TABLE["dgnet_cifar_r20"][1] - TABLE["dgnet_cifar_r20"][0] == added
    x = torch.randn(2, 16, 33, 32)
    shortcut = base.layer2[0].downsample(x)
    assert shortcut.shape == (2, 32, 17, 16)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any() and not shortcut[:, 24:].any()


@pytest.mark.grid
@pytest.mark.parametrize("name", TABLE)
def test_the_chain_is_the_base_network(name):
    """Any torchvision checkpoint fits by name; with the chain alone the features are the base's."""
    base = settle(base_of(name)).double().eval()
    model = classifier(name, edges="chain").double().eval()
    load_weights(model, base.state_dict())
    x = images(1, 64, torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), base(x), rtol=1e-6, atol=0)


def test_a_dynamic_network_with_the_chain_fully_open_is_the_base_network():
    """ψ = 1 where α = 1 and τ = -inf: the routers alone can express the base network."""
    base = settle(models.resnet18()).double().eval()
    model = create_model("dgnet_r18").double().eval()
    load_weights(model, base.state_dict())
    for graph in model.graphs.values():
        for router in graph.routers:
            nn.init.zeros_(router.weight)
        graph.open_chain(threshold=-1e3, chain_bias=60.0, side_bias=-800.0)
    x = images(2, 64, torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), base(x), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_base_network_s_file_names_what_is_missing_and_changes_nothing():
    model = DGNet(TINY, num_classes=5)
    before = copy.deepcopy(model.state_dict())
    state = tiny_resnet().state_dict()
    del state["layer2.1.conv1.weight"]
    state["bn1.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match="layer2.1.conv1.weight.*bn1.weight"):
        load_weights(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_trainable_start_is_near_the_base_and_has_gradients():
    base = settle(models.resnet18()).eval()
    x = images(2, 64)
    model = create_model("dgnet_r18", start_as_base=False).eval()
    assert not load_weights(model, base.state_dict()).start
    assert _deviation(model, base, x) > 0.01
    model = create_model("dgnet_r18").eval()
    assert "start near it" in load_weights(model, base.state_dict()).start
    assert _deviation(model, base, x) < 0.01
    model(x).square().sum().backward()
    for graph in model.graphs.values():
        assert graph.thresholds.grad.abs().min() > 0
        assert all(router.bias.grad.abs().min() > 0 for router in graph.routers)


def _deviation(model, base, x):
    with torch.no_grad():
        return (model(x) - base(x)).norm() / base(x).norm()


@needs_coco
@pytest.mark.slow
def test_torchvision_s_weights_give_torchvision_s_logits_on_photographs(tmp_path):
    base = models.resnet50()
    for module in base.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_RGB.mean, IMAGENET_RGB.std))
    files = sorted((DATASETS / "coco/val2017").glob("*.jpg"))[:12]
    photographs = [read_image(str(file), ImageReadMode.RGB) for file in files]
    x = torch.stack([(resize(image, [224, 224]) - mean) / std for image in photographs])
    with torch.no_grad():
        base.train()(x)
    torch.save(base.eval().state_dict(), tmp_path / "resnet50.pth")
    model = create_model("dgnet_r50", num_classes=1000, weights=str(tmp_path / "resnet50.pth"))
    assert _deviation(model.eval(), base, x) < 0.01


# Every mode at both batch sizes on a small network; on the real ones what differs between them.
_CASES = [("tiny", edges, batch) for edges in EDGES for batch in (1, 2)]
_REAL = [(name, "dynamic", batch) for name in TABLE for batch in (1, 2)]
_REAL += [(name, edges, 2) for name in ("dgnet_mobilenet_v2", "dgnet_r18") for edges in EDGES[1:]]
_CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in _REAL]


@pytest.mark.grid
@pytest.mark.parametrize(("name", "edges", "batch"), _CASES)
def test_every_parameter_has_a_gradient(name, edges, batch):
    """At once a gradient; within three steps from random BN scales a non-zero one."""
    options = {"edges": edges}
    variant = TINY if name == "tiny" else name
    model = settle(DGNet(variant, num_classes=5, **options), 0.3, 0.9)
    assert (edges == "dynamic") == any("routers" in n for n, _ in model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    silent = set(dict(model.named_parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        model(images(batch, 64)).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        silent -= {n for n, p in model.named_parameters() if p.grad.any()}
        optimizer.step()
    assert not silent


@pytest.mark.parametrize("name", TABLE)
def test_features_have_the_stated_channels_and_strides(name):
    last = "res4" if "cifar" in name else "res5"
    model = create_model(name, features_only=True, out_features=("stem", "res2", last)).eval()
    with torch.no_grad():
        features = model(images(1, 64))
    assert list(features) == ["stem", "res2", last]
    for key, feature in features.items():
        side = 64 // model.feature_strides[key]
        assert feature.shape == (1, model.feature_channels[key], side, side)
    assert model.size_divisibility == (4 if "cifar" in name else 32)
    assert not any(n.startswith(("fc", "classifier")) for n, _ in model.named_parameters())


@pytest.mark.grid
@pytest.mark.parametrize("edges", ("dynamic", "static"))
@pytest.mark.parametrize("name", ("dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnety_600m"))
def test_checkpointing_gives_identical_gradients_and_buffers(name, edges):
    plain = DGNet(name, edges=edges)
    cheap = DGNet(name, edges=edges, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    x = images()
    for model in (plain, cheap):
        for _ in range(2):
            model(x)["res5"].square().mean().backward()
    for (key, a), b in zip(plain.named_parameters(), cheap.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=key)
    state = cheap.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_checkpointing_saves_memory():
    def saved_bytes(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(images())
        return total

    assert saved_bytes(DGNet("dgnet_r50", with_cp=True)) < 0.6 * saved_bytes(DGNet("dgnet_r50"))


def test_shapes_come_without_memory():
    """The meta device has no autocast to ask about."""
    with torch.device("meta"):
        assert DGNet("dgnet_r18", num_classes=3)(torch.empty(2, 3, 64, 64)).shape == (2, 3)


def test_stages_beyond_the_last_feature_are_not_built():
    for name in ("dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnetx_600m"):
        model = create_model(name, features_only=True, out_indices=(2,))
        whole = create_model(name, features_only=True)
        assert model.size_divisibility == 8
        assert count_parameters(model) < count_parameters(whole) / 3
        assert set(model.state_dict()) < set(whole.state_dict())


def test_mobilenet_features_are_the_24_32_96_and_320_channel_stages():
    model = create_model("dgnet_mobilenet_v2", features_only=True)
    assert list(model.feature_channels.values())[1:] == [24, 32, 96, 320]
    stem = model.feature_modules("stem")
    assert any(isinstance(m, DynamicGraph) for m in stem)  # the 16-channel stage


@pytest.mark.parametrize("frozen", (0, 2))
def test_a_frozen_stage_freezes_its_routers_and_thresholds_too(frozen):
    model = settle(DGNet(TINY, frozen_stages=frozen))
    fixed = ("conv1.", "bn1.") + sum(
        ((f"layer{i}.", f"graphs.{i - 1}.") for i in range(1, frozen + 1)), ()
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith(fixed), name
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(images())["res5"].square().sum().backward()
    optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved and not any(name.startswith(fixed) for name in moved)
    assert not model.graphs["0"].training or frozen == 0


def test_batches_equal_images_one_by_one():
    model = settle(create_model("dgnet_r18", features_only=True)).double().eval()
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, 0.5)
        for router in graph.routers:
            nn.init.normal_(router.weight, std=0.3)
            nn.init.normal_(router.bias, std=0.3)
    x = images(4, 64, torch.double) * torch.tensor([0.1, 1, 4, 20])[:, None, None, None]
    with torch.no_grad(), record_connectivity(model) as records:
        together = model(x)
        one_by_one = [model(image) for image in x.split(1)]
    for name, feature in together.items():
        alone = torch.cat([f[name] for f in one_by_one])
        torch.testing.assert_close(feature, alone, rtol=1e-6, atol=1e-6 * alone.std().item())
    matrices = records["graphs.1"]
    torch.testing.assert_close(matrices[0], torch.cat(matrices[1:]))
    assert len({tuple(m.ne(0).flatten().tolist()) for m in matrices[0]}) > 1


def test_padding_moves_edge_weights_less_with_valid_sizes():
    """Smaller, not equal: convolutions leak over the border."""
    model = settle(create_model("dgnet_r18", features_only=True)).eval()
    for graph in model.graphs.values():
        for router in graph.routers:
            nn.init.normal_(router.weight, std=0.1)
    image = images(1, 96)
    padded = torch.zeros(1, 3, 160, 160)
    padded[:, :, :96, :96] = image
    moves = []
    for sizes in (None, [(96, 96)]):
        with torch.no_grad(), record_connectivity(model) as records:
            model(image), model(padded, valid_sizes=sizes)
        moves.append(sum((a - b).abs().mean() for a, b in records.values()).item())
    assert 0 < moves[1] < 0.7 * moves[0]


def test_the_head_s_stage_is_the_network_s_last():
    for name in ("dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnety_600m"):
        whole = settle(create_model(name, features_only=True, out_features=("res4", "res5"))).eval()
        stage = DGStage(name).eval()
        state = whole.state_dict()
        stage.load_state_dict({key: state[key] for key in stage.state_dict()})
        with torch.no_grad():
            features = whole(images(2, 64))
            torch.testing.assert_close(stage(features["res4"]), features["res5"])
            assert stage(features["res4"][:0]).shape == (0, stage.out_channels, 2, 2)
        assert stage.in_channels == whole.feature_channels["res4"]


def test_bf16_autocast_is_close_to_float32():
    model = settle(create_model("dgnet_r50", features_only=True)).eval()
    with torch.no_grad():
        exact = model(x := images(1, 64))["res5"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)["res5"].float()
    assert (rough - exact).norm() < 0.05 * exact.norm()


class OwnBlock(nn.Module):
    """A block of a type that is not registered."""

    def __init__(self, a, b, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, stride, 1)

    def forward(self, x):
        return self.conv(x).relu()


class OwnNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(OwnBlock(3, 8, 2), OwnBlock(8, 8), OwnBlock(8, 8))
        self.body = nn.ModuleDict({"second": nn.Sequential(OwnBlock(8, 12, 2), OwnBlock(12, 12))})

    def forward(self, x):
        return self.body["second"](self.first(x)).mean((2, 3))


def test_rewire_makes_any_staged_network_dynamic():
    network = OwnNetwork()
    chain = rewire(network, ("first", "body.second"), torch.zeros(1, 3, 16, 16), edges="chain")
    x = images(2, 16)
    torch.testing.assert_close(chain.eval()(x), network(x))
    names = set(network.state_dict())
    dynamic = rewire(network, ("first", "body.second"), torch.zeros(1, 3, 16, 16))
    assert names < set(dynamic.state_dict())
    assert not isinstance(network.first, type(dynamic.first))  # the user's own is left alone
    dynamic(x).sum().backward()
    assert all(p.grad is not None for p in dynamic.parameters())
    with record_connectivity(dynamic) as records:
        dynamic(x)
    assert [m[0].shape for m in records.values()] == [(2, 5, 5), (2, 4, 4)]


def test_a_rewired_stage_can_be_indexed_and_keeps_its_mode():
    network = OwnNetwork()
    network.first.eval()
    dynamic = rewire(network, ("first", "body.second"), torch.zeros(1, 3, 16, 16))
    assert not dynamic.first.training and not dynamic.first.graph.training
    assert not dynamic.first[0].training and dynamic.body["second"][1].training
    assert len(dynamic.first) == len(list(dynamic.first)) == 3
    network.first[1] = network.first[2]
    with pytest.raises(ValueError, match="repeats a block"):
        rewire(network, ("first",), torch.zeros(1, 3, 16, 16))


def test_rewire_torchvision_is_the_dgnet():
    resnet = settle(models.resnet18()).eval()
    own = rewire(resnet, ("layer1", "layer2", "layer3", "layer4"), torch.zeros(1, 3, 64, 64))
    assert count_parameters(own) == TABLE["dgnet_r18"][1]


@pytest.mark.parametrize(
    ("stages", "message"),
    (
        (("nothing",), "nothing"),
        (("first",), "does not run through.*first"),
        (("body",), "second"),
        (("uneven",), "uneven.*equal shapes"),
        ((), "stages"),
    ),
)
def test_rewire_says_what_it_cannot_rewire(stages, message):
    class Uneven(OwnNetwork):
        def __init__(self):
            super().__init__()
            self.uneven = nn.Sequential(OwnBlock(3, 8), OwnBlock(8, 12))

        def forward(self, x):
            return self.uneven(x)

    network = Uneven()
    with pytest.raises(ValueError, match=message):
        rewire(network, stages, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(variant="dgnet_r51"), "dgnet_r51.*dgnet_r50"),
        (dict(variant=TINY, out_features=("res6",)), "res6.*res5"),
        (dict(variant=TINY, edges="all"), "all.*dynamic"),
        (dict(variant=TINY, frozen_stages=5), "frozen_stages is 5"),
        (dict(variant="dgnet_cifar_r20", out_features=("res5",)), "res5.*res4"),
    ),
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DGNet(**arguments)


def test_unknown_blocks_cannot_lose_their_shortcut():
    class Other(Bottleneck):
        pass

    assert DGNet(DGNetVariant(lambda norm_layer: ResNet(Other, [1, 1, 1, 1]), RESNET))
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="OwnBlock"):
        rewire(OwnNetwork(), ("first",), example, block_shortcut=False)


@pytest.mark.parametrize("kind", (DGNet, DGStage))
def test_only_routers_start_near_the_base(kind):
    with pytest.raises(ValueError, match="'static'; only 'dynamic' has routers"):
        kind("dgnet_r18", edges="static", start_as_base=True)
    network = kind("dgnet_r18", start_as_base=True)
    assert all(graph.routers[0].bias[0] == 9 for graph in network.graphs.values())
