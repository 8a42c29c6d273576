"""Training classifiers: arguments of the model, decoded images in memory, connectivity by epoch."""

import json
import re
from pathlib import Path

import pytest
import torch
from torchvision import datasets

pytest.importorskip("timm", reason="timm is not installed")

from gram_backbones import create_model, record_connectivity
from gram_backbones.classification.building import build_classifier
from gram_backbones.classification.checkpoint import fill_classifier, read_checkpoint
from gram_backbones.classification.data import evaluation_loader, open_datasets
from gram_backbones.classification.engine import evaluate
from gram_backbones.classification.recipes import RECIPES
from gram_backbones.dgnet.connectivity import summarise
from gram_backbones.preprocessing import CIFAR_RGB
from tests.classification.tiny import (
    CPU,
    call,
    refused,
    same,
    tiny_recipe,
    trainer,
)


def arguments(few, output, *more):
    """A run of one epoch; the model's arguments come last."""
    given = ("--model", "dgnet_cifar_r20", "--data", few, "--output", output, "--workers", 0)
    return (*given, "--batch-size", 8, "--epochs", 1, "--img-size", 16, *more)


def test_arguments_of_the_model_reach_it_and_the_record(tool, monkeypatch, few, tmp_path):
    chosen = arguments(few, tmp_path, "--model-kwargs", "edges=er", "wiring_seed=3")
    call(tool, monkeypatch, *chosen)
    content = read_checkpoint(tmp_path / "last.pth")
    kwargs = {"edges": "er", "wiring_seed": 3}
    assert content["training"]["config"]["model_kwargs"] == kwargs
    assert content["meta"]["model_kwargs"] == str(kwargs)
    assert "graphs.0.edge_weights" in content["state_dict"]
    call(tool, monkeypatch, *chosen, "--eval-only")
    call(tool, monkeypatch, *chosen, "--resume")
    said = refused(tool, monkeypatch, *arguments(few, tmp_path, "--resume"))
    assert f"of another run: model_kwargs is {{}} here, {kwargs} there" in said


@pytest.mark.slow
def test_a_checkpoint_from_before_there_were_arguments_resumes(few, tmp_path):
    recipe = tiny_recipe(epochs=1, warmup_epochs=0)
    trainer(few, tmp_path, recipe).run()
    last = tmp_path / "last.pth"
    content = read_checkpoint(last)
    assert content["training"]["config"].pop("model_kwargs") == {}
    torch.save(content, last)
    assert trainer(few, tmp_path, recipe, resume=last).epoch == 1
    with pytest.raises(ValueError, match="model_kwargs is {'with_cp': True} here, {} there"):
        trainer(few, tmp_path, recipe, resume=last, model_kwargs={"with_cp": True})


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ("edge=static", "DGNet has no argument 'edge' .did you mean 'edges'"),
        ("edges=all", "edges is 'all'; allowed are"),
        ("router_bias=open", "does not take {'router_bias': 'open'}: "),
        ("num_classes=3", "model_kwargs has 'num_classes', which follows from the data"),
    ),
)
def test_wrong_arguments_end_in_one_sentence(given, message, tool, monkeypatch, few, tmp_path):
    said = refused(tool, monkeypatch, *arguments(few, tmp_path / "out", "--model-kwargs", given))
    assert re.match(f"train_classifier.py: .*{message}", said)
    assert not (tmp_path / "out").exists()


def test_values_are_literals_or_strings(tool, monkeypatch, capsys):
    texts = ("edges=ws", "router_bias=-3", "with_cp=True", "widths=(1, 2)", "a=b=c", "norm=")
    wanted = ("ws", -3, True, (1, 2), "b=c", "")
    assert tuple(tool.keyword(text)[1] for text in texts) == wanted
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, "--model", "x", "--data", "y", "--model-kwargs", "edges")
    assert stopped.value.code == 2 and "'edges' is not KEY=VALUE" in capsys.readouterr().err


def test_the_default_folder_has_the_arguments_in_its_name(tool, monkeypatch):
    argv = ["train_classifier.py", "--model", "dgnet_r50", "--data", "x"]
    monkeypatch.setattr("sys.argv", argv)
    assert tool.parse_args().output == Path("work_dirs/dgnet_r50")
    monkeypatch.setattr("sys.argv", [*argv, "--model-kwargs", "weights=a/b", "edges=ws"])
    assert tool.parse_args().output == Path("work_dirs/dgnet_r50-edges=ws-weights=a_b")


def test_aognet_s_dropout_goes_before_the_recipe_s():
    recipe = RECIPES["aognet_cifar"]
    for given, rate in ((None, 0.1), ({"dropout": 0.0}, 0.0), ({"learn_scales": True}, 0.1)):
        model = build_classifier("aognet_cifar_s_full", 3, recipe, given)
        assert {op.dropout for op in model.res4.blocks[0].ops} == {rate}
        assert (model.res2.blocks[0].scales is not None) == ("learn_scales" in (given or {}))


@pytest.mark.slow
def test_cached_images_are_decoded_once_and_change_nothing(tool, monkeypatch, few, tmp_path):
    decoded = []
    load = datasets.folder.pil_loader
    monkeypatch.setattr(
        datasets.folder, "pil_loader", lambda path: decoded.append(path) or load(path)
    )
    for name, more, times in (("plain", (), 3), ("cached", ("--cache",), 1)):
        decoded.clear()
        call(tool, monkeypatch, *arguments(few, tmp_path / name, "--epochs", 3, *more))
        assert len(decoded) == times * (16 + 12) and len(set(decoded)) == 16 + 12
    plain, cached = (read_checkpoint(tmp_path / name / "last.pth") for name in ("plain", "cached"))
    assert same(plain, cached)
    said = refused(tool, monkeypatch, *arguments(few, tmp_path, "--cache", "--workers", 2))
    assert "--cache needs --workers 0, not 2" in said


def test_metrics_have_both_gates_and_the_shares_of_closed_edges(
    tool, monkeypatch, few, tmp_path, capsys
):
    call(tool, monkeypatch, *arguments(few, tmp_path))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert 0 <= line["closed_edges"] <= 1 and 0 <= line["closed_blocks"] <= 1
    assert line["seconds"] > 0 and line["training_gate_top1"] == line["top1"]
    assert capsys.readouterr().out.count("DG-Net: ") == 1


def test_a_run_starts_from_the_base_network_s_weights(tool, monkeypatch, few, tmp_path, capsys):
    base = build_classifier("dgnet_cifar_r20", 4, RECIPES["cifar_small"], {"edges": "chain"})
    torch.save(base.state_dict(), tmp_path / "base.pth")
    tops = []
    for edges in ("chain", "dynamic"):
        more = ("--model-kwargs", f"edges={edges}", "--weights", tmp_path / "base.pth")
        call(tool, monkeypatch, *arguments(few, tmp_path / edges, "--lr", 1e-9, *more))
        tops.append(re.findall(r"before training: top-1 ([\d.]+)", capsys.readouterr().out))
    assert tops[0] == tops[1] and len(tops[0]) == 1
    state = read_checkpoint(tmp_path / "dynamic/last.pth")["state_dict"]
    for name, value in base.state_dict().items():
        if name.endswith("weight"):
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
    bias = state["graphs.0.routers.0.bias"]
    assert bias.tolist() == pytest.approx([9, -9, -9, -9], abs=1e-3)  # start_as_base
    call(tool, monkeypatch, *arguments(few, tmp_path / "dynamic", "--lr", 1e-9, *more, "--resume"))
    (tmp_path / "base.pth").unlink()
    said = refused(tool, monkeypatch, *arguments(few, tmp_path / "none", *more))
    assert "there is no weight file" in said


def test_the_shares_are_those_of_all_validation_images(few):
    """Batches of different size; some images have closed edges that others have not."""
    recipe = RECIPES["cifar_small"]
    val = open_datasets(few, "folder", recipe, CIFAR_RGB)[1]
    model = build_classifier("dgnet_cifar_r20", 4, recipe)
    for graph in model.graphs.values():
        torch.nn.init.constant_(graph.thresholds, 0.5)
        for router in graph.routers:
            torch.nn.init.normal_(router.weight, std=0.5)
            torch.nn.init.zeros_(router.bias)
    found = evaluate(model, evaluation_loader(val, 5), CPU)  # 5, 5 and 2 images
    with torch.no_grad(), record_connectivity(model.eval()) as records:
        model(torch.stack([image for image, _ in val]))
    wanted = summarise(records)
    assert 0 < wanted["closed_edges"] < 1
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_a_network_without_dynamic_edges_has_no_shares(few):
    val = open_datasets(few, "folder", tiny_recipe(), CIFAR_RGB)[1]
    model = build_classifier("dgnet_cifar_r20", 4, tiny_recipe(dropout=0), {"edges": "er"})
    found = evaluate(model, evaluation_loader(val, 12), CPU)
    assert set(found) == {"val_loss", "top1", "top5"}


def test_a_state_without_a_counter_does_not_fit():
    model = create_model("dgnet_cifar_r20", num_classes=3)
    state = model.state_dict()
    del state["bn1.num_batches_tracked"]
    with pytest.raises(
        ValueError, match="file does not fit: .*; missing: bn1.num_batches_tracked$"
    ):
        fill_classifier(model, state, "file")
