"""Networks for inference: equal to those they were made from, and nothing else."""

import copy
import io

import pytest
import torch
from torch import nn

from gram_backbones import create_model, list_models, load_weights
from gram_backbones.aognet import AOGStage
from gram_backbones.dgnet import DGStage
from gram_backbones.fused import FusedConv, deploy
from tests.test_fused import filled, small


def error(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
def test_a_deployed_network_computes_the_same(name):
    model, x = small(name, num_classes=10)
    model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    fast = deploy(model)
    with torch.no_grad():
        for image in (x, x[:, :, :, :-8], torch.cat([x, x])):  # packed weights serve all sizes
            assert error(fast(image), model(image)) < 1e-5
    kinds = {type(m) for m in fast.modules()}
    assert FusedConv in kinds
    assert ("y_600m" in name) == (nn.Conv2d in kinds)  # squeeze-and-excitation has no norms
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18", "dgnet_mobilenet_v2"))
@pytest.mark.parametrize("norm", ("FrozenBN", "GN"))
def test_features_under_other_norms(name, norm):
    model, x = small(name, features_only=True, norm=norm)
    fast = model.eval().deploy()
    with torch.no_grad():
        for got, wanted in zip(fast(x).values(), model(x).values()):
            assert error(got, wanted) < 1e-5
    assert any(type(m) is FusedConv for m in fast.modules()) is (norm == "FrozenBN")


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18", "dgnet_regnety_600m"))
def test_every_way_of_computing_agrees(name):
    """oneDNN's operators, the plain ones under gradients or in float64, and a trace's."""
    model, x = small(name, num_classes=10)
    model.eval()
    with torch.no_grad():
        wanted = model(x)
    fast = model.deploy()
    assert error(fast(x), wanted) < 1e-5  # gradients are on
    assert error(copy.deepcopy(fast).double()(x.double()), wanted) < 1e-5
    with torch.no_grad():
        fast(x)
        traced = torch.jit.trace(fast, x)
        assert error(traced(x * 2), model(x * 2)) < 1e-5
        exported = torch.export.export(fast, (x,)).module()
        assert error(exported(x * 3), model(x * 3)) < 1e-5
        assert error(fast.to(torch.bfloat16)(x.bfloat16()).float(), wanted) < 0.05


@pytest.mark.parametrize(
    "stage, channels", ((AOGStage("aognet_4m"), 256), (DGStage("dgnet_r18"), 256))
)
def test_a_c4_detector_s_stage(stage, channels):
    filled(stage).eval()
    regions = torch.randn(3, channels, 8, 8)
    with torch.no_grad():
        fast = deploy(nn.ModuleDict({"res5": stage}))["res5"]
        assert error(fast(regions), stage(regions)) < 1e-5
        assert fast(regions[:0]).shape[0] == 0
    assert any(type(m) is FusedConv for m in fast.modules())


def test_closed_edges_are_left_out_as_before():
    model, x = small("dgnet_r18", num_classes=10)
    model.eval()
    with torch.no_grad():
        model.graphs["1"].thresholds[1] = 2.0
        assert error(model.deploy()(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_it_does_not_train_and_takes_no_weights(name):
    model, x = small(name, num_classes=10)
    fast = model.deploy()
    assert model.training and not fast.training
    with pytest.raises(ValueError, match="a deployed network only infers"):
        fast.train()
    assert not any(m.training for m in fast.modules())
    assert fast.train(False) is fast
    with pytest.raises(ValueError, match="a deployed network takes no weights"):
        fast.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="a deployed network takes no weights"):
        load_weights(fast, model.state_dict())


def test_it_is_copied_and_saved():
    model, x = small("dgnet_r18", num_classes=10)
    fast = model.eval().deploy()
    with torch.no_grad():
        wanted = fast(x)  # packs the weights
        assert torch.equal(copy.deepcopy(fast)(x), wanted)
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), wanted)


def test_batch_statistics_cannot_be_folded():
    with pytest.raises(ValueError, match="BatchNorm2d.*cannot be folded"):
        FusedConv(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))


def test_what_is_not_ours_stays(monkeypatch):
    head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    detector = nn.ModuleDict({"body": create_model("aognet_4m", features_only=True), "head": head})
    fast = deploy(detector)
    assert [type(m) for m in fast["head"]] == [nn.Conv2d, nn.BatchNorm2d]
