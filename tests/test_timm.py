"""The timm adapter: names, weights, features, classifiers, optimisers, files of weights."""

import copy
import hashlib
import importlib
import subprocess
import sys
import warnings
from unittest import mock

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed")

import timm
from timm.data import resolve_model_data_config
from timm.models import group_parameters, is_model_pretrained
from timm.optim import create_optimizer_v2
from torchvision import models

import gram_backbones.timm as gram
from gram_backbones import create_model, list_models

SMALL = ("aognet_4m", "dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnety_600m")
# Of the names that timm lists: users' scripts have them. A new model changes it.
LISTED = "9583ebfd"


def randomised(model):
    """Fresh norms hide what they scale by 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, std=0.1)
    return model


def with_weights(model_function, name, state, **kwargs):
    """A model with all weights of its own names out of ``state``."""
    keep = dict.fromkeys(("kaiming_normal_", "kaiming_uniform_"), lambda weight, **_: weight)
    with mock.patch.multiple(nn.init, **keep):  # start values are replaced, and take their time
        model = model_function(name, **kwargs)
    model.load_state_dict({n: state[n] for n in model.state_dict()})
    return model.eval()


@pytest.fixture(scope="module", params=list_models())
def pair(request):
    """Every model as the core and as timm builds it, with the same weights, and its name."""
    torch.manual_seed(0)
    plain = randomised(create_model(request.param, num_classes=3)).eval()
    model = with_weights(timm.create_model, request.param, plain.state_dict(), num_classes=3)
    return plain, model, request.param


def image(size=64, channels=3):
    return torch.randn(1, channels, size, size)


# Names


def test_timm_lists_every_model_of_the_core():
    names = timm.list_models(module="timm")
    assert sorted(names) == list_models()
    assert set(gram.__all__) == {"TimmAOGNet", "TimmDGNet", "register_family", *names}
    assert all(callable(getattr(gram, name)) for name in names)
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:8] == LISTED


def test_registering_again_is_silent_and_changes_nothing():
    before = timm.list_models()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(gram)
    assert timm.list_models() == before
    assert timm.models.model_entrypoint("aognet_4m") is gram.aognet_4m


@pytest.mark.slow
def test_absent_timm_is_one_clear_sentence():
    code = "import sys; sys.modules['timm'] = None; import gram_backbones.timm"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "gram_backbones.timm needs timm" in last and "pip install" in last


# The same network


@pytest.mark.grid
def test_weights_interchange_and_give_the_same_logits(pair):
    plain, model, name = pair
    assert list(model.state_dict()) == list(plain.state_dict())
    x = image(32 if "cifar" in name else 64)
    with torch.no_grad():
        logits = plain(x)
        assert logits.isfinite().all() and logits.std() > 0
        assert torch.equal(model(x), logits)
        final = model.forward_features(x)
        pooled = model.forward_head(final, pre_logits=True)
        assert final.shape[1] == pooled.shape[1] == model.num_features == model.head_hidden_size
        assert torch.equal(model.forward_head(final), logits)
        assert isinstance(model.get_classifier(), nn.Linear)
        assert torch.equal(model.get_classifier()(pooled), logits)


@pytest.mark.grid
def test_features_are_the_core_s_under_its_names(pair, monkeypatch):
    plain, _, name = pair
    model = with_weights(timm.create_model, name, plain.state_dict(), features_only=True)
    monkeypatch.setattr(plain, "num_classes", None)
    monkeypatch.setattr(plain, "out_features", plain.stage_names)
    x = image(32 if "cifar" in name else 64)
    with torch.no_grad():
        features, wanted = model(x), plain.forward_features(x)
    assert isinstance(features, list)
    for feature, expected in zip(features[1:], wanted.values(), strict=True):
        assert torch.equal(feature, expected)
    strides = model.feature_info.reduction()
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [x.shape[2] // f.shape[2] for f in features] == strides
    assert strides == ([1, 1, 2, 4] if "cifar" in name else [2, 4, 8, 16, 32])


@pytest.mark.grid
def test_default_cfg_describes_the_network(pair):
    plain, model, name = pair
    cfg = model.pretrained_cfg
    assert cfg is model.default_cfg
    assert (cfg["license"], cfg["architecture"]) == ("apache-2.0", name)
    preprocessing = plain.variant.preprocessing
    assert preprocessing.channel_order == "RGB"
    for key in ("mean", "std"):
        scaled = [value / 255 for value in getattr(preprocessing, key)]
        assert list(cfg[key]) == pytest.approx(scaled, abs=1e-6)
    assert cfg["input_size"] == ((3, 32, 32) if "cifar" in name else (3, 224, 224))
    assert cfg["crop_pct"] == (1.0 if "cifar" in name else 0.875)
    stride = plain.size_divisibility
    assert cfg["pool_size"] == tuple(side // stride for side in cfg["input_size"][1:])
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert model.get_submodule(cfg["first_conv"]) is first
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert (model.num_classes, cfg["num_classes"]) == (3, 1000)
    assert resolve_model_data_config(model)["interpolation"] == "bilinear"


@pytest.mark.grid
def test_optimisers_group_every_parameter(pair):
    _, model, _ = pair
    names = {id(p): n for n, p in model.named_parameters()}
    for layer_decay in (None, 0.7):
        optimizer = create_optimizer_v2(
            model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=layer_decay
        )
        groups = optimizer.param_groups
        assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
        free = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
        assert free == {n for n, p in model.named_parameters() if p.ndim < 2}
        assert model.no_weight_decay() == {n for n in free if n.endswith("thresholds")}
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    cfg = model.pretrained_cfg
    assert min(scales, key=scales.get).startswith(cfg["first_conv"])
    fastest = {name for name, scale in scales.items() if scale == 1}
    assert fastest == {f"{cfg['classifier']}.weight", f"{cfg['classifier']}.bias"}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    stages = [
        {coarse[names[id(p)]] for module in model.feature_modules(n) for p in module.parameters()}
        for n in model.stage_names
    ]
    assert all(max(a) < min(b) for a, b in zip(stages, stages[1:]))


def test_group_order_follows_the_blocks():
    model = timm.create_model("dgnet_r18", num_classes=3)
    order = group_parameters(model, model.group_matcher(), reverse=True)
    names = ["bn1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.bn1.bias"]
    assert [order[n] for n in names] == [0, 1, 2, 3]
    assert order["graphs.0.thresholds"] == order["graphs.0.routers.0.weight"] == 2
    model = timm.create_model("aognet_4m", num_classes=3)
    order = group_parameters(model, model.group_matcher(), reverse=True)
    names = ["stem.2.0.weight", "res2.blocks.0.norm.weight", "res3.transition.0.0.weight"]
    assert [order[n] for n in names] == [0, 1, 2]
    assert order["res3.blocks.0.norm.bias"] == 2
    assert [order[f"res4.blocks.{i}.norm.bias"] for i in range(3)] == [3, 4, 5]


# Arguments


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("indices", ((1, 2), (-4, 0), 2, (3, 1)))
def test_out_indices_as_timm_counts_them(name, indices):
    model = timm.create_model(name, features_only=True, out_indices=indices).eval()
    reductions = {(1, 2): [4, 8], (-4, 0): [4, 2], 2: [16, 32], (3, 1): [16, 4]}[indices]
    assert model.feature_info.reduction() == reductions
    with torch.no_grad():
        features = model(image())
    assert [64 // f.shape[3] for f in features] == reductions
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    deepest = max(reductions)
    layers = [n for n, _ in model.named_parameters()]
    late = [n for n in layers if n.startswith(("res5", "layer4", "trunk_output.block4", "fc"))]
    assert bool(late) == (deepest == 32 and name != "dgnet_mobilenet_v2")
    assert not any(n.startswith(("features.18", "classifier")) for n in layers)


@pytest.mark.parametrize("wrapper", ("getter", "hook"))
@pytest.mark.parametrize("name", SMALL[1:3])
def test_timm_s_own_feature_wrappers_work_too(name, wrapper):
    torch.manual_seed(0)
    own = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    torch.manual_seed(0)
    wrapped = timm.create_model(
        name, features_only=True, out_indices=(0, 2), feature_cls=wrapper
    ).eval()
    x = image()
    with torch.no_grad():
        for a, b in zip(own(x), wrapped(x), strict=True):
            assert torch.equal(a, b)


def test_intermediates_come_with_the_final_map():
    for name in SMALL:
        model = timm.create_model(name, num_classes=3).eval()
        x = image()
        with torch.no_grad():
            final, maps = model.forward_intermediates(x, indices=[1, 4])
            assert torch.equal(final, model.forward_features(x))
            early, (last,) = model.forward_intermediates(x, indices=[2], stop_early=True)
            assert torch.equal(early, last)
        assert [64 // m.shape[2] for m in maps] == [4, 32]
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'; allowed is 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("name", SMALL)
def test_another_number_of_channels(name):
    in_chans = 5
    model = timm.create_model(name, in_chans=in_chans, num_classes=3)
    conv = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert conv.weight.shape[1] == conv.in_channels == model.in_chans == in_chans
    expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.25)
    model.eval()(image(channels=in_chans)).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_classifiers_are_replaced(name):
    x = image()
    model = timm.create_model(name, num_classes=0).eval()
    core_names = set(create_model(name, num_classes=0).state_dict())
    assert set(model.state_dict()) == core_names
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(x).shape == (1, 7)
    assert set(model.state_dict()) == set(create_model(name).state_dict())
    model.reset_classifier(2, "catavgmax")
    assert model(x).shape == (1, 2) and model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    with pytest.raises(ValueError, match="global_pool is ''; with num_classes 2"):
        model.reset_classifier(2)


@pytest.mark.parametrize("name", SMALL)
def test_drop_rate_acts_before_the_classifier_in_training_only(name):
    own = 0.2 if name == "dgnet_mobilenet_v2" else 0.0
    assert timm.create_model(name, num_classes=3).drop_rate == own
    model = timm.create_model(name, num_classes=3, drop_rate=0.5)
    final = torch.ones(1, model.num_features, 2, 2)
    dropped = model.train().forward_head(final, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(final, pre_logits=True), final.mean((2, 3)))


def test_features_train_without_aognet_s_dropout_unless_asked():
    for arguments, rate in (
        ({}, 0.1),
        (dict(features_only=True), 0.0),
        (dict(features_only=True, dropout=0.3), 0.3),
    ):
        model = timm.create_model("aognet_4m", **arguments)
        assert {op.dropout for op in model.res4.blocks[0].ops} == {rate}


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "arguments"), (("aognet_4m", dict(dropout=0.0)), ("dgnet_r18", {}))
)
def test_grad_checkpointing_gives_the_same_gradients(name, arguments):
    plain = timm.create_model(name, num_classes=3, **arguments)
    cheap = copy.deepcopy(plain)
    cheap.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    calls = []
    for model in (plain, cheap):
        conv = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
        conv.register_forward_hook(lambda *_, model=model: calls.append(model))
        model.train()(x).square().sum().backward()
    assert (calls.count(plain), calls.count(cheap)) == (1, 2)
    for (n, a), b in zip(plain.named_parameters(), cheap.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=n)
    cheap.set_grad_checkpointing(False)
    assert not any(getattr(m, "with_cp", False) for m in cheap.modules())


def test_further_arguments_reach_the_core():
    model = timm.create_model("dgnet_r18", edges="static", frozen_stages=1, norm="GN")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert {"graphs.0.edge_weights"} < model.no_weight_decay()
    assert not model.conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad
    model = timm.create_model("aognet_4m", learn_scales=True, frozen_stages=4, in_chans=1)
    assert "res2.blocks.0.scales" in model.no_weight_decay()
    assert not model.stem[0][0].weight.requires_grad
    cut = timm.create_model("aognet_4m", features_only=True, out_indices=(1,), frozen_stages=3)
    assert not any(p.requires_grad for p in cut.train().parameters())
    model = timm.create_model("aognet_4m", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(in_chans=0), "in_chans is 0; allowed are 1 and more"),
        (dict(global_pool=""), "global_pool is ''; with num_classes 1000 it takes a type"),
        (dict(frozen_stages=9), "frozen_stages is 9; allowed are -1 to 4"),
        (dict(norm="XN"), "norm is 'XN'; allowed are"),
        (dict(norm="BN", norm_layer=nn.BatchNorm2d), "norm is 'BN' and norm_layer .*; give one"),
        (dict(norm_layer="batchnorm7d"), "norm_layer is 'batchnorm7d'; allowed are"),
        (dict(act_layer=nn.SiLU), r"act_layer is .*SiLU'>; allowed is nn\.ReLU$"),
        (dict(act_layer="gelu"), r"act_layer is 'gelu'; allowed is nn\.ReLU$"),
        (dict(drop_path_rate=1.0), "drop_path is 1.0; allowed are 0 and more, below 1"),
        (dict(features_only=True, feature_cls="tuple"), "feature_cls is 'tuple'; allowed are"),
    ),
)
def test_a_bad_argument_is_named_with_what_is_allowed(arguments, message):
    for name in ("aognet_4m", "dgnet_r18"):
        with pytest.raises(ValueError, match=message):
            timm.create_model(name, **arguments)


# Files of weights


def test_there_are_no_pretrained_weights():
    assert not any(is_model_pretrained(name) for name in list_models())
    for name in SMALL:
        with pytest.raises(RuntimeError, match="No pretrained weights exist for"):
            timm.create_model(name, pretrained=True)


def from_file(name, path, **kwargs):
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs
    )


@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_mobilenet_v2"))
def test_a_file_of_one_s_own_fills_the_model(name, tmp_path):
    state = randomised(create_model(name)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    strict = timm.create_model(name, checkpoint_path=str(tmp_path / "w.pth"))
    resized = from_file(name, tmp_path / "w.pth", num_classes=3)
    grey = from_file(name, tmp_path / "w.pth", features_only=True, out_indices=(1, 3), in_chans=1)
    conv, head = strict.pretrained_cfg["first_conv"], strict.pretrained_cfg["classifier"]
    assert strict.num_classes == 1000 and resized.num_classes == 3
    for model, others in ((strict, ()), (resized, (head,)), (grey, (conv,))):
        own = model.state_dict()
        equal = {n for n in own if torch.equal(own[n], state[n])}
        assert own.keys() - equal == {n for n in own if n.rpartition(".")[0] in others}
    summed = state[f"{conv}.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.state_dict()[f"{conv}.weight"], summed)


def test_a_base_network_s_file_starts_the_model_as_it(tmp_path):
    base, path = models.resnet18(), str(tmp_path / "w.pth")
    torch.save(base.state_dict(), path)
    for model, bias in (
        (from_file("dgnet_r18", path), 9),
        (timm.create_model("dgnet_r18", checkpoint_path=path), 9),
        (timm.create_model("dgnet_r18", checkpoint_path=path, start_as_base=False), 3),
    ):
        assert torch.equal(model.layer4[1].conv2.weight, base.layer4[1].conv2.weight)
        assert torch.equal(model.fc.weight, base.fc.weight)
        assert set(model.graphs["0"].routers[0].bias.tolist()) == {bias, -bias}


def test_a_checkpoint_with_another_classifier_stops_a_classifier_only(tmp_path):
    base = models.resnet18(num_classes=7)
    torch.save(base.state_dict(), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no classifier for num_classes=3"):
        timm.create_model("dgnet_r18", checkpoint_path=path, num_classes=3)
    model = timm.create_model("dgnet_r18", checkpoint_path=path, features_only=True)
    assert torch.equal(model.layer1[0].conv1.weight, base.layer1[0].conv1.weight)


@pytest.mark.parametrize("arguments", (dict(num_classes=3), dict(features_only=True)))
def test_files_that_do_not_fit_stop(arguments, tmp_path, monkeypatch):
    # The hint in the message, which takes seconds for all models.
    monkeypatch.setattr("gram_backbones.weights.fit.fitting_models", lambda file: [])
    state = create_model("dgnet_r18").state_dict()
    gone = state.pop("layer2.0.conv1.weight")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1\.weight"):
        from_file("dgnet_r18", tmp_path / "w.pth", **arguments)
    torch.save({f"teacher.{n}": v for n, v in {**state, "x": gone}.items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="fills 0 of"):
        from_file("dgnet_r18", tmp_path / "w.pth", **arguments)


# Programs


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_training_moves_every_parameter(name):
    model = randomised(timm.create_model(name, num_classes=3))
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.9)
    logits = model(torch.randn(4, 3, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    moved = {n for n, v in model.named_parameters() if not torch.equal(v, before[n])}
    still = {n for n, _ in model.named_parameters()} - moved
    assert not still


@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_models_are_copied_and_saved_whole(name, tmp_path):
    model = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
    torch.save(model, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    x = image()
    with torch.no_grad():
        for other in (copy.deepcopy(model), loaded):
            for a, b in zip(other(x), model(x), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_what_only_resnets_take_is_refused_with_a_sentence(name):
    for argument in ("aa_layer", "stem_width", "block_args"):
        with pytest.raises(ValueError, match=f"has no argument '{argument}'.*; allowed are act_"):
            timm.create_model(name, **{argument: 32})
