"""Files for other runtimes compute what the network computes, at any size."""

import pytest
import torch

from gram_backbones import create_model
from gram_backbones.exporting import export_network
from tests.dgnet.open_edges import spread
from tests.test_fused import filled

# One small model of every kind of block; tools/export.py checks the others in the same way.
KINDS = ("aognet_cifar_s_pruned", "dgnet_r18", "dgnet_mobilenet_v2", "dgnet_regnety_600m")


@pytest.mark.slow
@pytest.mark.parametrize("ending", (".onnx", ".pt2"))
@pytest.mark.parametrize("name", KINDS)
def test_every_network_is_exported_and_checked(name, ending, tmp_path):
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    model = spread(filled(create_model(name, features_only=True)))
    assert export_network(model, tmp_path / f"net{ending}") < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [f"net{ending}"]
    assert model.training


@pytest.mark.slow
def test_a_deployed_classifier(tmp_path):
    model = filled(create_model("dgnet_cifar_r20", num_classes=7)).deploy()
    assert export_network(model, tmp_path / "net.pt2") < 1e-4


@pytest.mark.slow
def test_a_package_of_aot_inductor(tmp_path):
    model = spread(filled(create_model("dgnet_cifar_r20", features_only=True)))
    assert export_network(model, tmp_path / "net.pt2", aot_inductor=True) < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    model, other = (create_model("dgnet_cifar_r20", num_classes=7).eval() for _ in range(2))
    real = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda network, *a, **k: real(other, *a, **k))
    with pytest.raises(ValueError, match="net.pt2 differs from the network by .* not written"):
        export_network(model, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"net.pb; allowed endings are \('.onnx', '.pt2'\)"):
        export_network(create_model("dgnet_cifar_r20"), tmp_path / "net.pb")
