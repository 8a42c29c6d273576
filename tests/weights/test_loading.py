"""Weights: what a network is filled with, conversion, records."""

import copy
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

pytest.importorskip("timm", reason="timm is not installed")

import timm

from gram_backbones import AOGNet, DGNet, create_model, list_models, list_weights, load_weights
from gram_backbones.aognet import AOGNetVariant, AOGStage
from gram_backbones.aognet.names import authors
from gram_backbones.dgnet import DGStage
from gram_backbones.registry import find_variant
from gram_backbones.weights.convert import LAYOUTS, convert_weights
from gram_backbones.weights.files import (
    WeightError,
    WeightFile,
    file_hash,
    read_weight_file,
)
from gram_backbones.weights.names import find_names, meta_tensors
from gram_backbones.weights.published import ACCEPT
from gram_backbones.weights.records import WEIGHTS
from tests.conftest import check_ended_well

ROOT = Path(__file__).resolve().parents[2]
TINY = AOGNetVariant((2, 4, 4, 2), (1, 1, 2, 1), (8, 16, 24, 32, 48))


def settled(model):
    """Norms away from their start, so that a tensor in the wrong place shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def second_names(name):
    """The second release's names; its spec leaves what stands for ``*`` and the norm open."""
    parts = name.split(".")
    conv = {"0": "conv", "1": "bn"}
    if parts[0] == "stem":
        return f"stem.conv1.{parts[1]}.{conv[parts[2]]}.{parts[3]}"
    if parts[0] == "fc":
        return name
    stage = int(parts[0][3:]) - 1
    if parts[1] == "transition":
        return f"layer{stage}.0.transition.0.{conv[parts[3]]}.{parts[4]}"
    block = int(parts[2])
    if parts[3] == "norm":
        return f"layer{stage}.{block}.bn_out.{parts[4]}"
    op, which = parts[5], parts[6]
    leaf = f"downsample.{conv[which]}" if op == "shortcut" else f"{conv[which]}{op[-1]}"
    node = f"stage_{stage}_block_{block + 1}_node_{parts[4]}_op"
    return f"layer{stage}.{block}.{node}.{leaf}.{parts[7]}"


# Namings and prefixes


@pytest.mark.grid
@pytest.mark.parametrize("prefix", ("", "module.", "network.", "module.network."))
@pytest.mark.parametrize("rename", (authors, second_names), ids=("first", "second"))
def test_both_namings_of_the_authors_fill_aognet(rename, prefix):
    source = settled(create_model("aognet_12m_released"))
    tensors = {prefix + rename(name): value for name, value in source.state_dict().items()}
    assert len(tensors) == 1927
    network = AOGNet("aognet_12m_released")
    found = load_weights(network, WeightFile("file.pth", tensors))
    assert found.report()[0][1] == "loaded 1925 of 1925 tensors from file.pth"
    assert found.ignored == (f"{prefix}fc.weight", f"{prefix}fc.bias")
    own = source.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def foreign_networks():
    """Networks of other libraries, our model of each, and how their features are taken."""
    return {
        "torchvision resnet50": ("dgnet_r50", models.resnet50),
        "torchvision resnext50": ("dgnet_x50", models.resnext50_32x4d),
        "timm mobilenetv2": ("dgnet_mobilenet_v2", lambda: timm.create_model("mobilenetv2_100")),
        "timm regnetx": ("dgnet_regnetx_600m", lambda: timm.create_model("regnetx_006")),
        "timm regnety": ("dgnet_regnety_600m", lambda: timm.create_model("regnety_006")),
        "torchvision regnetx": ("dgnet_regnetx_1600m", models.regnet_x_1_6gf),
    }


@pytest.mark.parametrize("case", foreign_networks())
def test_weights_of_other_libraries_give_their_networks_logits(case):
    """With the chain alone a DG-Net is its base network: names, order and places are all right."""
    model, build = foreign_networks()[case]
    source = settled(build())
    network = create_model(model, edges="chain")
    found = load_weights(network, WeightFile(case, source.state_dict()))
    assert not found.kept and not found.ignored
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = source(x)
        torch.testing.assert_close(network.eval()(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.grid
@pytest.mark.parametrize("edges", ("static", "er", "ba", "ws"))
def test_networks_with_fixed_edges_are_filled_too(edges):
    network = DGNet("dgnet_r18", edges=edges)
    found = load_weights(network, WeightFile("base", models.resnet18().state_dict()))
    assert found.kept and all(name.endswith(".edge_weights") for name in found.kept)
    source = DGNet("dgnet_r18", edges=edges, router_bias=1.0).state_dict()
    load_weights(network, WeightFile("own", source))
    assert all(torch.equal(value, source[name]) for name, value in network.state_dict().items())


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
def test_every_naming_is_found_again(name):
    with torch.device("meta"):
        state = create_model(name).state_dict()
    variant = find_variant(name)
    for naming, rename in variant.namings.items():
        names = {f"module.{rename(mine)}": mine for mine in state}
        assert len(names) == len(state), naming
        assert find_names(variant, names)[1:] == ("module.", names), naming


def test_a_file_with_some_routers_must_have_all():
    network = DGNet("dgnet_r18")
    state = network.state_dict()
    del state["graphs.2.thresholds"]
    with pytest.raises(WeightError, match="missing: graphs.2.thresholds"):
        load_weights(network, state)


@pytest.mark.grid
@pytest.mark.parametrize("layout", ("detectron2", "mmdet", "bare"))
@pytest.mark.parametrize("family", ("aognet", "dgnet"))
def test_a_c4_detector_s_file_fills_network_and_stage(family, layout):
    source = settled(AOGNet(TINY) if family == "aognet" else DGNet("dgnet_r18"))
    last = ("res5.", "layer4.", "graphs.3.")
    head = {"mmdet": "roi_head.shared_head.", "detectron2": "roi_heads.res5.", "bare": ""}[layout]
    tensors = {}
    for name, value in source.state_dict().items():
        if layout == "bare":
            tensors[name] = value
        elif name.startswith(last):
            tensors[head + name.removeprefix("res5.")] = value
        else:
            tensors[f"backbone.{name}"] = value
    file = WeightFile("file", tensors | ({"rpn.weight": torch.zeros(1)} if head else {}))
    whole = AOGNet(TINY) if family == "aognet" else DGNet("dgnet_r18")
    stage = AOGStage(TINY, 3) if family == "aognet" else DGStage("dgnet_r18")
    own = source.state_dict()
    assert load_weights(whole, file).others == (("rpn.weight",) if head else ())
    load_weights(stage, file)
    assert all(torch.equal(v, own[n]) for n, v in whole.state_dict().items())
    for name, value in stage.state_dict().items():
        assert torch.equal(value, own[name if name in own else f"res5.{name}"])


@pytest.mark.parametrize("name", ("aognet_cifar_s_full", "dgnet_cifar_r20"))
def test_networks_of_three_stages_are_written_for_pyramids_only(name, tmp_path):
    state = create_model(name, num_classes=10).state_dict()
    torch.save(state, tmp_path / "source.pth")
    paths = (str(tmp_path / "source.pth"), tmp_path / "target.pth", name)
    convert_weights(*paths, layout="mmdet")
    written = torch.load(tmp_path / "target.pth", weights_only=True)["state_dict"]
    assert set(written) == {f"backbone.{key}" for key in state if not key.startswith("fc.")}
    with pytest.raises(ValueError, match=f"needs the stage res5, which {name} does not have"):
        convert_weights(*paths, layout="mmdet-c4")


def test_learned_scales_keep_their_start():
    network = AOGNet(TINY, learn_scales=True)
    found = load_weights(network, WeightFile("f", AOGNet(TINY).state_dict()))
    assert found.kept and all(name.endswith(".scales") for name in found.kept)


def test_a_classifier_for_other_classes_keeps_its_start():
    source = AOGNet(TINY, num_classes=7)
    network = AOGNet(TINY, num_classes=3)
    fresh = copy.deepcopy(network.fc.state_dict())
    found = load_weights(network, WeightFile("f", source.state_dict()))
    assert set(found.ignored) == {"fc.weight", "fc.bias"}
    assert torch.equal(network.fc.weight, fresh["weight"])
    assert torch.equal(network.stem[0][0].weight, source.stem[0][0].weight)


# Conversion, records


@pytest.mark.grid
@pytest.mark.parametrize("ending", (".safetensors", ".pth", ".pkl"))
@pytest.mark.parametrize(
    ("model", "names"),
    (
        ("aognet_4m", "authors"),
        ("dgnet_r18", "detectron2"),
        ("dgnet_mobilenet_v2", "timm"),
        ("dgnet_regnety_600m", "timm"),
    ),
)
def test_a_conversion_there_and_back_changes_nothing(model, names, ending, tmp_path):
    source = settled(create_model(model, num_classes=5))
    torch.save(source.state_dict(), tmp_path / "source.pth")
    there, back = tmp_path / f"there{ending}", tmp_path / "back.safetensors"
    record = convert_weights(str(tmp_path / "source.pth"), there, model, names=names, licence="MIT")
    convert_weights(str(there), back, model)
    file = read_weight_file(back)
    own = source.state_dict()
    assert file.tensors.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in file.tensors.items())
    assert record["source_sha256"] == file_hash(tmp_path / "source.pth")
    assert (record["model"], record["channel_order"], record["licence"]) == (model, "RGB", "MIT")
    assert record["mean"] == str(source.variant.preprocessing.mean)
    assert file.record["licence"] == "MIT"  # it is handed on


@pytest.mark.grid
@pytest.mark.parametrize(
    ("arguments", "says"),
    (
        (dict(names="timm"), "can be written as"),
        (dict(layout="d2-fpn", names="authors"), "takes names 'own', not 'authors'"),
        (dict(layout="yolo"), str(LAYOUTS[0])),
    ),
)
def test_a_conversion_that_is_not_possible_is_refused(arguments, says, tmp_path):
    torch.save(AOGNet("aognet_4m").state_dict(), tmp_path / "source.pth")
    with pytest.raises(WeightError, match=says):
        convert_weights(tmp_path / "source.pth", tmp_path / "t.pth", "aognet_4m", **arguments)
    assert not (tmp_path / "t.pth").exists()
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert_weights(tmp_path / "source.pth", tmp_path / "gone/t.pth", "aognet_4m")


@pytest.mark.slow
def test_the_tool_converts_a_pickle_only_when_it_is_allowed(tmp_path):
    state = AOGNet("aognet_4m").state_dict()
    torch.save({"state_dict": OrderedDict(state), "args": Path("x")}, tmp_path / "source.pth")
    tool = [sys.executable, "-W", "ignore", ROOT / "tools/convert_weights.py"]
    command = [*tool, "source.pth", "target.safetensors", "--model", "aognet_4m"]
    options = dict(cwd=tmp_path, capture_output=True, text=True)
    done = subprocess.run(command, **options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pathlib" in done.stderr and "--allow-pickle" in done.stderr
    done = subprocess.run([*command, "--allow-pickle"], **options)
    check_ended_well(done)
    assert '"source_sha256"' in done.stdout
    assert read_weight_file(tmp_path / "target.safetensors").tensors.keys() == state.keys()


def test_half_precision_is_widened_where_numpy_has_none(tmp_path):
    state = AOGNet("aognet_4m").bfloat16().state_dict()
    torch.save(state, tmp_path / "source.pth")
    convert_weights(tmp_path / "source.pth", tmp_path / "target.pkl", "aognet_4m")
    tensors = read_weight_file(tmp_path / "target.pkl").tensors
    assert all(torch.equal(value.float(), tensors[n].float()) for n, value in state.items())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    torch.save(AOGNet("aognet_4m").state_dict(), tmp_path / "source.pth")
    (tmp_path / "target.pth").mkdir()
    with pytest.raises(OSError, match="target.pth"):
        convert_weights(tmp_path / "source.pth", tmp_path / "target.pth", "aognet_4m")
    assert {p.name for p in tmp_path.iterdir()} == {"source.pth", "target.pth"}


def test_the_zoo_s_licence_goes_with_its_files(tmp_path, monkeypatch):
    torch.save(models.resnet18().state_dict(), tmp_path / "source.pth")
    name = "dgnet_r18.tv_in1k"
    record = replace(WEIGHTS[name], sha256=file_hash(tmp_path / "source.pth"))
    monkeypatch.setitem(WEIGHTS, name, record)
    for licence in (None, "mine"):
        arguments = (tmp_path / "source.pth", tmp_path / "target.pth", "dgnet_r18")
        written = convert_weights(*arguments, licence=licence)
        assert written["licence"] == licence or "BSD-3-Clause" in written["licence"]
        assert written["top1"] == str(record.top1)


@pytest.mark.parametrize("name", list_weights())
def test_records_name_a_model_a_hash_a_licence_and_the_accuracy(name, tmp_path, monkeypatch):
    record = WEIGHTS[name]
    assert record.model in list_models() and name.startswith(f"{record.model}.")
    assert record.licence and record.origin and record.url.startswith("https://")
    assert 60 < record.top1 < 85 if record.top1 else record.tag == "authors_v1"
    if record.restricted:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.delenv(ACCEPT, raising=False)
        with pytest.raises(WeightError, match="its licence is 'research only'"):
            create_model(record.model, weights=name)
        tensors = meta_tensors(find_variant(record.model)).values()
        assert record.size == round(sum(tensor.nbytes for tensor in tensors) / 2**20)
    else:
        assert record.sha256 in record.url and record.size > 1


def test_create_model_with_weights(tmp_path):
    source = settled(create_model("aognet_4m"))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = create_model("aognet_4m", features_only=True, weights=str(tmp_path / "w.pth"))
    assert torch.equal(network.res5.blocks[0].norm.bias, source.res5.blocks[0].norm.bias)
    with pytest.raises(WeightError, match="for dgnet_r50, not for aognet_4m"):
        create_model("aognet_4m", weights="dgnet_r50.tv_in1k")


def test_a_record_with_lists_is_filled_too():
    """It has no hash, by which shapes of other records are remembered."""
    record = AOGNetVariant([2, 2], [1, 1], [8, 16, 32], pruning=[None, None], lateral=False)
    source = AOGNet(record, num_classes=3)
    found = load_weights(AOGNet(record, num_classes=3), source.state_dict())
    assert len(found.values) == found.wanted
