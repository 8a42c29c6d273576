"""What timm's own tests ask of its ResNet-18, asked of ours: tests/test_models.py of timm."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed")

import timm
from timm.models import _features_fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import gram_backbones.timm  # noqa: F401 (registers the models)
from gram_backbones.fused import unfused

SMALL = ("dgnet_r18", "aognet_4m", "dgnet_mobilenet_v2", "dgnet_regnety_600m")


def notrace(kind):
    """What timm leaves whole in traces; 1.0.15 keeps it under other names."""
    old = {"modules": "_leaf_modules", "functions": "_autowrap_functions"}[kind]
    kept = getattr(_features_fx, old, None)
    return list(getattr(_features_fx, f"get_notrace_{kind}")() if kept is None else kept)


def traced(model):
    options = dict(leaf_modules=notrace("modules"), autowrap_functions=notrace("functions"))
    train, evaluation = get_graph_node_names(model, tracer_kwargs=options)
    return create_feature_extractor(
        model,
        train_return_nodes=train[-1:],
        eval_return_nodes=evaluation[-1:],
        tracer_kwargs=options,
    )


def with_branches(model):
    """Branches that end in a norm of scale 0 would be dropped unnoticed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def only(outputs):
    (output,) = outputs.values()
    return output


# Feature classes


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("indices", (None, (3, 1)))
@pytest.mark.parametrize("kind", ("list", "dict", "hook", "getter"))
def test_every_feature_class_gives_the_same_maps(kind, indices, name):
    wanted = {} if indices is None else dict(out_indices=indices)
    torch.manual_seed(0)
    own = timm.create_model(name, features_only=True, **wanted).eval()
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, feature_cls=kind, **wanted).eval()
    assert isinstance(model, nn.Module)
    assert model.feature_info.channels() == own.feature_info.channels()
    assert len(own.feature_info.channels()) == (5 if indices is None else 2)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, expected = model(x), own(x)
    if kind == "dict":
        assert list(maps) == [str(index) for index in indices or range(5)]
        maps = list(maps.values())
    if kind == "hook":  # timm's hooks fire in the order of the network
        maps, expected = (sorted(m, key=lambda x: x.shape[2]) for m in (maps, expected))
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_timm_s_class_of_features_is_the_same_as_its_name():
    names = []
    for kind in ("dict", timm.models.FeatureDictNet):
        model = timm.create_model("dgnet_r18", features_only=True, feature_cls=kind)
        names.append(sorted(model.state_dict()))
        assert set(model.eval()(torch.randn(1, 3, 32, 32))) == set("01234")
    assert names[0] == names[1]


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("stride", (8, 16))
def test_output_stride_of_features(name, stride):
    model = timm.create_model(name, features_only=True, output_stride=stride).eval()
    assert max(model.feature_info.reduction()) == stride
    features = model(torch.randn(1, 3, 64, 64))
    assert [64 // f.shape[2] for f in features] == model.feature_info.reduction()


# torch.fx and TorchScript


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_traced_by_fx_it_gives_the_same_logits(name):
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    graph = traced(model).eval()
    with torch.no_grad():
        with unfused():  # the traced form; otherwise equal up to rounding
            assert torch.equal(only(graph(x)), model(x))
        torch.testing.assert_close(only(graph(x)), model(x))
        assert only(graph(x[:1])).shape == (1, 5)


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_traced_by_fx_every_parameter_has_a_gradient(name):
    model = timm.create_model(name, num_classes=5).train()
    only(traced(model).train()(torch.randn(2, 3, 64, 64))).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.grid
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("way", (lambda model: model, traced), ids=("model", "fx"))
def test_scripted_it_gives_the_same_logits(name, way):
    model = timm.create_model(name, num_classes=5, scriptable=True).eval()
    scripted = torch.jit.script(way(model).eval())
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        outputs = scripted(x)
        outputs = outputs if isinstance(outputs, torch.Tensor) else only(outputs)
        torch.testing.assert_close(outputs, model(x))
        assert scripted(x[:1]) is not None


# Options that timm's models share


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_drop_path_drops_whole_branches_in_training(name):
    model = with_branches(timm.create_model(name, num_classes=3, drop_path_rate=0.2))
    drops = [m for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    rates = [m.p for m in drops]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.2) and rates[0] < 0.1
    assert model.state_dict().keys() == timm.create_model(name, num_classes=3).state_dict().keys()
    fired = []
    for drop in drops:
        drop.register_forward_hook(lambda m, x, y: fired.append(torch.equal(x[0], y)))
    x = torch.randn(4, 3, 64, 64)
    model.train()(x).sum().backward()
    assert fired and not all(fired)
    fired.clear()
    model.eval()(x)
    assert all(fired)


@pytest.mark.parametrize("name", SMALL[:2])
def test_drop_path_at_its_limit_leaves_the_shortcuts(name):
    """Near rate 1 the last block is its shortcut, as timm's and torchvision's blocks are."""
    model = with_branches(timm.create_model(name, features_only=True, drop_path_rate=1 - 1e-7))
    model.train()
    block = model.res5.blocks[-1].ops[0] if name == "aognet_4m" else model.layer4[1]
    width = 640 if name == "aognet_4m" else 512
    x = torch.rand(2, width, 4, 4)
    out = block(x, x.clone()) if name == "aognet_4m" else block(x)
    assert torch.equal(out, x)


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_norm_layer_is_a_layer_a_name_or_a_factory(name):
    own = nn.BatchNorm2d
    for norm in (nn.BatchNorm2d, "batchnorm2d", lambda channels: nn.GroupNorm(1, channels)):
        model = timm.create_model(name, num_classes=3, norm_layer=norm)
        kinds = {type(m) for m in model.modules() if isinstance(m, (own, nn.GroupNorm))}
        assert kinds == {nn.GroupNorm if callable(norm) and norm is not own else own}


@pytest.mark.grid
@pytest.mark.parametrize("name", SMALL)
def test_act_layer_may_be_the_network_s_own(name):
    own = nn.ReLU6 if name == "dgnet_mobilenet_v2" else nn.ReLU
    for act in (own, own.__name__.lower()):
        assert timm.create_model(name, num_classes=3, act_layer=act).num_classes == 3
