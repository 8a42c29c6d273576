"""The command that shows where an AOGNet looks: picture, numbers, and wrong input."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones import AOGNet, cli
from gram_backbones.cli.explain import MEASURES
from gram_backbones.preprocessing import CIFAR_RGB

explaining = pytest.importorskip("gram_backbones.analysis.explaining", exc_type=ImportError)
NAME = "aognet_cifar_s_pruned_lateral"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, and weights of a classifier whose nodes all count."""
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    model = AOGNet(NAME, num_classes=3, zero_init_last=False)
    torch.save(model.state_dict(), folder / "w.pth")
    torch.save(AOGNet(NAME).state_dict(), folder / "features.pth")
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    (folder / "names.txt").write_text("cat\nship\ntruck\n")
    return folder


def run(folder, *options, image="image.png", model=NAME, weights="w.pth"):
    arguments = [str(folder / image), "--model", model, "--weights", str(folder / weights)]
    cli.main(["explain", *arguments, *map(str, options)])


def test_picture_and_numbers_agree(folder, tmp_path, capsys):
    output = tmp_path / "explanation.svg"
    names = ("--names", folder / "names.txt", "--class", "ship")
    run(folder, *names, "--stage", 2, "--nodes", 0, 3, "--output", output)
    said = capsys.readouterr().out
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["class"] == "ship" and set(record["probabilities"]) == {"cat", "ship", "truck"}
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    (block,) = record["blocks"]
    text = output.read_text()
    for node in block["nodes"]:
        assert f">{explaining.format_amount('to_root', node['to_root'])}</text>" in text
    assert block["nodes"][0]["to_root"] == pytest.approx(1, abs=1e-5)
    chosen = block["strongest_parse"]["to_root"]
    parse = said.split("block 1: ")[1].splitlines()[0]
    assert [int(id) for id in re.findall(r"(\d+): (?:T|AND)", parse)] == chosen
    # A parse covers every word once: its T-nodes are its leaves.
    leaves = [block["nodes"][i]["words"] for i in chosen if block["nodes"][i]["type"] == "T"]
    assert [word for first, last in leaves for word in range(first, last + 1)] == [0, 1, 2, 3]
    assert text.count("<image") == 3  # the picture and two maps
    assert {path.name for path in tmp_path.iterdir()} == {"explanation.svg", "explanation.json"}


def test_maps_are_the_librarys_of_that_node():
    """Grad-CAM by hand, where maps have the image's size: mean gradients weigh the channels."""
    model = AOGNet(NAME, num_classes=3, zero_init_last=False).eval()
    image = torch.randn(1, 3, 32, 32)
    maps = explaining.grad_cam(model, image, 1, 1, [3, 0], target=1)
    assert [*maps] == [3, 0]
    for node in maps:
        outputs = []
        hook = model.res2.blocks[0].ops[node].register_forward_hook
        handle = hook(lambda *call, outputs=outputs: outputs.append(call[2]))
        score = model(image)[0, 1]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, outputs)
        wanted = (outputs[0] * gradient.mean((2, 3), keepdim=True)).sum(1).relu()[0].detach()
        wanted = (wanted - wanted.min()) / (wanted - wanted.min()).max()
        assert np.allclose(maps[node], wanted, atol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_networks_input_is_normalised_as_in_training(folder):
    picture = explaining.read_square(folder / "image.png", 32)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    x = explaining.as_input(picture, CIFAR_RGB)
    back = x[0].permute(1, 2, 0) * torch.tensor(CIFAR_RGB.std) + torch.tensor(CIFAR_RGB.mean)
    assert np.allclose(back, picture, atol=1e-3)


def test_measures_of_the_command_are_those_of_the_package():
    assert MEASURES == explaining.MEASURES == tuple(explaining.TITLES)


@pytest.mark.grid
@pytest.mark.parametrize("measure", MEASURES[1:])
def test_other_measures_are_drawn(folder, tmp_path, measure):
    run(folder, "--by", measure, "--nodes", 0, "--stage", 1, "--output", tmp_path / "x.svg")
    record = json.loads((tmp_path / "x.json").read_text())
    text = (tmp_path / "x.svg").read_text()
    for node in record["blocks"][0]["nodes"]:
        assert f">{explaining.format_amount(measure, node[measure])}</text>" in text


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    (
        ({"image": "gone.png"}, [], "gone.png"),
        ({"image": "names.txt"}, [], "cannot read picture"),
        ({"image": ""}, [], "cannot read picture"),
        ({"model": "dgnet_cifar_r20"}, [], "dgnet_cifar_r20 has no grammar; allowed are AOGNets"),
        ({"model": "aognet_cifar"}, [], "there is no model named 'aognet_cifar'"),
        pytest.param({"model": "aognet_4m"}, [], "w.pth", marks=pytest.mark.slow),
        ({"weights": "gone.pth"}, [], "gone.pth"),
        ({"weights": "image.png"}, [], "image.png"),
        ({"weights": "features.pth"}, [], "has no classifier (fc.weight, fc.bias)"),
        ({}, ["--class", "7"], "there is no class '7'; allowed are 0 to 2"),
        ({}, ["--class", "shp", "--names", "names.txt"], "(did you mean 'ship'?)"),
        ({}, ["--names", "w.pth"], "w.pth is not a text file in UTF-8"),
        ({}, ["--stage", "4"], "stage is 4; the model has stages 1 to 3"),
        ({}, ["--block", "2"], "block is 2; stage 3 has blocks 1 to 1"),
        ({}, ["--nodes", "99"], "there is no node 99; the block has nodes 0 to 20"),
        ({}, ["--size", "2"], "size is 2; aognet_cifar_s_pruned_lateral needs 4 or more"),
        ({}, ["--output", "x.gif"], "its suffix must be .png or .svg"),
    ),
)
def test_wrong_input_ends_in_a_sentence(
    folder, tmp_path, monkeypatch, capsys, changes, options, sentence
):
    monkeypatch.chdir(tmp_path)
    known = ("names.txt", "w.pth")
    options = [str(folder / option) if option in known else option for option in options]
    with pytest.raises(SystemExit) as ended:
        run(folder, *options, **changes)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())
