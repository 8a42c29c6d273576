"""Convolution and fixed norm as one: the same as one after the other, wherever it applies."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

from gram_backbones import create_model, folding, fused, list_models
from gram_backbones.aognet import AOGStage
from gram_backbones.dgnet import DGStage
from gram_backbones.fused import conv_norm, deploy, run


def plain(function):
    with fused.unfused():
        return function()


def filled(module):
    """A module whose norms have statistics and scales of their own."""
    for child in module.modules():
        if getattr(child, "running_mean", None) is not None:
            child.running_mean.normal_(0, 0.1)
            child.running_var.uniform_(0.5, 2)
            child.weight.data.uniform_(0.5, 1)
            child.bias.data.normal_(0, 0.1)
    return module


def small(name, **options):
    size = 32 if "cifar" in name else 64
    return filled(create_model(name, **options)), torch.randn(2, 3, size, size)


def check_close(got, wanted, tolerance):
    for name in wanted:
        error = (got[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-30)
        assert error <= tolerance, (name, float(error))


def count_fused(monkeypatch):
    calls = []
    real = fused.kept_fold
    monkeypatch.setattr(fused, "kept_fold", lambda *a: calls.append(a[0]) or real(*a))
    return calls


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("norm", ("BN", "FrozenBN"))
def test_inference_computes_the_same(name, norm, monkeypatch):
    model, x = small(name, features_only=True, norm=norm)
    model.eval()
    calls = count_fused(monkeypatch)
    with torch.no_grad():
        wanted = plain(lambda: model(x))
        assert not calls
        check_close(model(x), wanted, 1e-5)
        assert all(feature.is_contiguous() for feature in model(x).values())
        check_close(model(x.contiguous(memory_format=torch.channels_last)), wanted, 1e-5)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    # Squeeze-and-excitation has no norms.
    assert set(calls) == {conv for n, conv in convs.items() if ".se." not in n}


@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18", "dgnet_regnety_600m"))
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-5), (torch.float64, 1e-10)))
def test_gradients_with_frozen_norms_are_the_same(name, dtype, tolerance):
    model, x = small(name, features_only=True, norm="FrozenBN")
    model.to(dtype).train()
    x = x.to(dtype)

    def gradients():
        model.zero_grad()
        image = x.clone().requires_grad_()
        sum(feature.square().mean() for feature in model(image).values()).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {**found, "image": image.grad}

    wanted = plain(gradients)
    got = gradients()
    assert got.keys() == wanted.keys()
    check_close(got, wanted, tolerance)


def test_a_norm_that_trains_is_left_alone(monkeypatch):
    calls = count_fused(monkeypatch)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 5, 5)
    run(layers, x)  # training mode
    run(layers.eval(), x)  # scale and offset get gradients
    assert not calls
    layers[1].requires_grad_(False)
    run(layers, x)
    with torch.no_grad():
        run(layers.requires_grad_(True), x)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "norm",
    (
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.GroupNorm(2, 4),
        lambda: FrozenBatchNorm2d(4, eps=0.1),
        nn.Identity,
    ),
    ids=("without_affine", "without_statistics", "group", "eps", "none"),
)
@pytest.mark.parametrize("bias", (False, True))
def test_every_norm_computes_as_itself(norm, bias):
    conv, norm = nn.Conv2d(3, 4, 3, 2, 1, bias=bias), norm().eval()
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))


@pytest.mark.parametrize(
    "change",
    (
        lambda conv, norm: conv.weight.mul_(2),
        lambda conv, norm: setattr(conv, "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
        lambda conv, norm: conv.load_state_dict({k: v * 3 for k, v in conv.state_dict().items()}),
        lambda conv, norm: norm.running_var.mul_(4),
        lambda conv, norm: setattr(norm, "bias", torch.ones(4)),
        lambda conv, norm: setattr(conv, "bias", None),
        lambda conv, norm: setattr(conv.weight, "data", conv.weight.data * 2),
    ),
    ids=("in_place", "replaced", "loaded", "statistics", "buffer", "no_bias", "data"),
)
def test_what_is_kept_follows_the_weights(change):
    conv, norm = nn.Conv2d(3, 4, 3, padding=1), filled(FrozenBatchNorm2d(4))
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        conv_norm(conv, norm, x)  # keeps what it fused
        change(conv, norm)
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))


def test_data_written_behind_autograd_counts_from_the_next_mode_on():
    """MMEngine's averaging hook swaps weights by ``.data`` and then calls ``eval``."""
    model, x = small("aognet_4m", features_only=True, norm="FrozenBN")
    with torch.no_grad():
        before = model.eval()(x)["res2"]
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
        after = model.eval()(x)["res2"]
    assert not torch.equal(before, after)


def test_a_network_moved_to_another_precision_computes_in_it():
    model, x = small("dgnet_r18", features_only=True)
    model.eval()
    with torch.no_grad():
        wanted = model(x)["res5"]
        assert model.double()(x.double())["res5"].dtype == torch.float64
        got = model.float()(x)["res5"]
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()
        assert model.bfloat16()(x.bfloat16())["res5"].dtype == torch.bfloat16


def test_hooks_fire_and_what_they_change_counts():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
    x, seen = torch.randn(1, 3, 5, 5), []
    with torch.no_grad():
        run(layers, x)
        layers[0].register_forward_hook(lambda m, a, out: seen.append(out) or out * 0)
        assert torch.equal(run(layers, x), layers[1](torch.zeros(1, 4, 5, 5)))
    assert len(seen) == 1


def test_copies_and_pickles_keep_nothing():
    model, x = small("aognet_4m", features_only=True)
    names = set(model.state_dict())
    with torch.no_grad():
        model.eval()(x)
        size = len(pickle.dumps(model))
        twin = copy.deepcopy(model)
        twin.stem[0][0].weight.zero_()
        assert not torch.equal(twin(x)["res2"], model(x)["res2"])
    folding.forget_fused(model)
    assert size == len(pickle.dumps(model))
    assert set(model.state_dict()) == names


def test_what_is_kept_goes_with_the_model():
    model, x = small("aognet_4m", features_only=True)
    folding._CACHE.clear()
    with torch.no_grad():
        model.eval()(x)
    assert folding._CACHE
    del model
    assert not folding._CACHE


# What changes weights, or how modules are called, behind autograd's back


def pair(channels=4):
    return nn.Conv2d(3, channels, 3, padding=1, bias=False), filled(FrozenBatchNorm2d(channels))


def check_follows(conv, norm, x):
    torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)), rtol=1e-4, atol=1e-5)


def test_a_step_of_a_fused_optimizer_counts():
    conv, norm = pair()
    x = torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        check_follows(conv, norm, x)
    conv_norm(conv, norm, x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        check_follows(conv, norm, x)


@pytest.mark.parametrize(
    "stage", (lambda: AOGStage("aognet_4m", norm="FrozenBN"), lambda: DGStage("dgnet_r18"))
)
def test_a_stage_forgets_when_its_mode_changes(stage):
    stage = filled(stage()).eval()
    x = torch.randn(2, 256, 8, 8)
    with torch.no_grad():
        stage(x)
        for parameter in stage.parameters():
            parameter.data.mul_(1.5)
        got = stage.train().eval()(x)
        with fused.unfused():
            torch.testing.assert_close(got, stage(x), rtol=1e-3, atol=1e-3)


def test_new_memory_at_an_old_address_and_another_epsilon_count():
    conv, norm = pair()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(20):
            check_follows(conv, norm, x)
            conv.weight.data = torch.randn_like(conv.weight)
            conv.weight.data = torch.randn_like(conv.weight)
        check_follows(conv, norm, x)
        norm.eps = 1.0
        check_follows(conv, norm, x)


def test_a_gradient_may_follow_an_inference():
    conv, norm = pair()
    conv.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        conv_norm(conv, norm, x)
    x.requires_grad_()
    conv_norm(conv, norm, x).sum().backward()
    assert x.grad.any()


def test_torch_func_and_forward_derivatives_get_the_plain_form():
    conv, norm = pair()
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    def loss(weight):
        return torch.func.functional_call(Both(conv, norm), {"conv.weight": weight}, (x,)).sum()

    weight = conv.weight.detach()
    plain = torch.autograd.grad(norm(conv(x)).sum(), conv.weight)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight), plain, rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(conv_norm(conv, norm, dual)).tangent is not None


class Both(nn.Module):
    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x):
        return conv_norm(self.conv, self.norm, x)


def test_a_forward_that_was_replaced_is_called():
    conv, norm = pair()
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 0
    check_follows(conv, norm, torch.randn(2, 3, 8, 8))


def test_a_deployed_network_keeps_hooks_and_shared_convolutions_right():
    model = filled(create_model("aognet_4m", features_only=True)).eval()
    x = torch.randn(1, 3, 64, 64)
    first = model.stem[0][0]
    prune.l1_unstructured(first, "weight", 0.5)
    ops = model.res2.blocks[0].ops
    alike = [(a, b) for a in ops for b in ops
             if a is not b and a.conv2[0].weight.shape == b.conv2[0].weight.shape]  # fmt: skip
    alike[0][0].conv2[0] = alike[0][1].conv2[0]
    with torch.no_grad():
        model(x)
        first.weight_orig.mul_(3)
        wanted, got = model(x), deploy(model)(x)
    for name, feature in wanted.items():
        torch.testing.assert_close(got[name], feature, rtol=1e-3, atol=1e-3)
