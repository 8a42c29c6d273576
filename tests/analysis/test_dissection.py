"""Dissection: thresholds near the exact quantiles, counts of a plain loop, the command."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from gram_backbones import cli, create_model
from gram_backbones.analysis.dissection import (
    BINS,
    UnitQuantiles,
    dissect,
    find_layer,
    unit_maps,
)
from gram_backbones.data import read_dataset

pytest.importorskip("matplotlib")
MaskedPictures = pytest.importorskip(
    "gram_backbones.analysis.masks", exc_type=ImportError
).MaskedPictures


def test_quantiles_are_within_a_bin_of_the_exact_ones():
    torch.manual_seed(1)
    batches = [torch.randn(5, n) * scale for n, scale in ((50, 0.1), (3000, 1), (7000, 20))]
    for batch in batches:
        batch[1].clamp_(min=0)  # a unit after a ReLU
        batch[2].abs_().neg_()
        batch[3] += 1e4  # far from the first batch's range in the next line
    batches[0][3] -= 1e4
    for batch in batches:
        batch[4] = 0  # a dead unit
    quantiles = UnitQuantiles()
    for batch in batches:
        quantiles.add(batch)
    values = torch.cat(batches, 1).double().numpy()
    found = quantiles.above(0.005)
    bins = (values.max(1) - values.min(1)) * 2 / BINS + 1e-8
    below = np.sort(values, 1)[:, -int(0.005 * values.shape[1]) - 1]  # more than the share reach it
    assert (found > below).all() and (found <= below + bins).all()
    reached = (values >= found[:, None]).mean(1)
    np.testing.assert_allclose(quantiles.reached(0.005), reached, atol=2e-4)
    assert (reached <= 0.005).all() and reached[4] == 0 and (reached[:2] > 0.003).all()


def plain_loop(maps, masks, share, min_iou):
    """The definition, with everything in memory."""
    units, concepts = maps[0].shape[0], masks[0].shape[0]
    detected = {}
    for unit in range(units):
        values = np.sort(np.concatenate([m[unit].ravel() for m in maps]))[::-1]
        threshold = values[int(share * len(values)) - 1]
        best = (0.0, -1)
        for concept in range(concepts):
            both = either = 0
            for image_maps, image_masks in zip(maps, masks):
                size = image_masks.shape[1:]
                large = nn.functional.interpolate(
                    torch.from_numpy(image_maps[unit])[None, None], size, mode="bilinear"
                )[0, 0].numpy()
                is_on, is_there = large >= threshold, image_masks[concept]
                both += (is_on & is_there).sum()
                either += (is_on | is_there).sum()
            iou = both / max(either, 1)
            best = (iou, concept) if iou > best[0] else best
        if best[0] > min_iou:
            detected.setdefault(best[1], []).append(unit)
    return {concept: sorted(units) for concept, units in detected.items()}


def test_counts_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 70, 5, stride=2, padding=2), nn.ReLU())
    with torch.no_grad():  # units look for one concept each, every fourth for none
        model[0].weight.mul_(0.1)
        for unit in range(70):
            model[0].weight[unit, unit % 4 : unit % 4 + 1] += 0.1
    data = []
    for i in range(12):
        masks = torch.zeros(4, 48, 40, dtype=torch.bool)  # the last concept is nowhere
        image = torch.randn(1, 3, 48, 40)
        for concept in range(3):
            if (i + concept) % 3:
                y, x = torch.randint(0, 30, (2,)).tolist()
                masks[concept, y : y + 8, x : x + 8] = True
                image[:, concept, y : y + 8, x : x + 8] += 3
        data.append((image, masks))
    options = dict(share=0.02, min_iou=0.1)
    found = dissect(model, model[1], lambda: data, "abcd", **options)
    maps = [unit_maps(model, model[1], image).numpy() for image, _ in data]
    wanted = plain_loop(maps, [masks.numpy() for _, masks in data], 0.02, 0.1)
    counted = {"abcd".index(c): sorted(units) for c, units in found.detectors().items()}
    assert counted == wanted and found.unique_concepts == len(wanted) == 3
    assert 3 < sum(map(len, wanted.values())) < 70
    largest = np.stack([m.max((1, 2)) for m in maps], 1)
    assert (found.best_images == np.argsort(-largest, 1)[:, :4]).all()


@pytest.mark.parametrize(
    ("layer", "image", "sentence"),
    (
        (0, torch.full((1, 3, 8, 8), torch.nan), "an activation is not finite"),
        (2, torch.zeros(1, 3, 8, 8), r"the layer returns \(1, 8\)"),
        (3, torch.zeros(1, 3, 8, 8), "the layer does not run"),
        (0, None, "there are no images"),
    ),
)
def test_layers_that_cannot_be_dissected(layer, image, sentence):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.ReLU())
    module = nn.ReLU() if layer == 3 else model[layer]
    data = [] if image is None else [(image, torch.ones(1, 8, 8, dtype=torch.bool))]
    with pytest.raises(ValueError, match=sentence):
        dissect(model, module, lambda: data, ["a"])


@pytest.mark.grid
@pytest.mark.parametrize("name", ("dgnet_cifar_r20", "aognet_4m", "dgnet_mobilenet_v2"))
def test_features_and_modules_are_layers(name):
    model = create_model(name, features_only=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model(image)
    for feature, wanted in features.items():
        assert (unit_maps(model, find_layer(model, feature), image) == wanted[0]).all()
    conv = model.variant.first_conv
    assert (
        len(unit_maps(model, find_layer(model, conv), image))
        == model.get_submodule(conv).out_channels
    )
    unit_maps(model, find_layer(model, "stem"), image)
    with pytest.raises(ValueError, match="there is no layer 'res9'"):
        find_layer(model, "res9")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Eight drawn images with masks."""
    make = pytest.importorskip("gram_backbones.d2.demo_dataset").make_demo_dataset
    root = tmp_path_factory.mktemp("demo")
    make(root, train=1, val=8)
    return root


def test_masks_are_those_of_the_data_set(demo):
    dataset = read_dataset(f"demo={demo}/val.json:{demo}/val")
    row = create_model("dgnet_cifar_r20").variant
    pictures = MaskedPictures(dataset, 80, row.preprocessing)
    areas = torch.zeros(4)
    for image, masks in pictures:
        assert image.shape == (1, 3, 80, 80) and masks.shape == (4, 40, 40)
        areas += masks.flatten(1).sum(1)
    coco = pictures._coco
    for index, category in enumerate(dataset.category_ids):
        whole = sum(
            np.bitwise_or.reduce(
                [coco.annToMask(a) for a in annotations if a["category_id"] == category]
                or [np.zeros((160, 160), np.uint8)]
            ).sum()
            for annotations in coco.imgToAnns.values()
        )
        assert areas[index] == pytest.approx(whole / 16, rel=0.05)


def run(*arguments):
    cli.main(["dissect", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_compares_layers_of_different_width(demo, tmp_path, capsys):
    out = tmp_path / "out"
    run(f"demo={demo}/val.json:{demo}/val", "--model", "dgnet_cifar_r20", "dgnet_cifar_r20",
        "--layer", "res3", "res4", "--size", "96", "--iou", "0.001", "--output", out)  # fmt: skip
    assert "| network | units | detectors | unique concepts |" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "networks.csv").open()))
    assert [(row["network"], row["units"]) for row in rows] == [
        ("dgnet_cifar_r20-res3", "32"),
        ("dgnet_cifar_r20-res4", "64"),
    ]
    units = list(csv.DictReader((out / "units.csv").open()))
    assert len(units) == 32 + 64
    for row in rows:
        own = [u for u in units if u["network"] == row["network"] and u["detects"] == "True"]
        assert len(own) == int(row["detectors"]) > 0
        assert len({u["concept"] for u in own}) == int(row["unique_concepts"])
    assert {file.suffix for file in out.iterdir()} == {".csv", ".png"}
    assert (out / "units-dgnet_cifar_r20-res4.png").stat().st_size > 1e4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (["photographs", "--model", "aognet_4m"], "has no name or no place"),
        (["x=gone.json:.", "--model", "aognet_4m"], "does not exist"),
        (["{demo}", "--model", "aognet_4M"], "did you mean 'aognet_4m'"),
        (["{demo}", "--model", "dgnet_r18", "--layer", "res6"], "there is no layer 'res6'"),
        (["{demo}", "--model", "dgnet_r18", "--weights", "gone.pth"], "gone.pth"),
        (["{demo}", "--model", "dgnet_r18", "--weights", "a", "b"], "2 values for 1 models"),
        (["{demo}", "--model", "dgnet_r18", "--quantile", "5"], "--quantile is 5.0"),
        (["{boxes}", "--model", "dgnet_cifar_r20", "--layer", "res4"], "has no masks"),
    ),
)
def test_wrong_input_ends_in_a_sentence(arguments, sentence, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    boxes = '{"images": [], "annotations": [], "categories": []}'
    (tmp_path / "boxes.json").write_text(boxes)
    places = {"demo": f"demo={demo}/val.json:{demo}/val", "boxes": "boxes=boxes.json:."}
    with pytest.raises(SystemExit) as ended:
        run(*(argument.format(**places) for argument in arguments))
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "dissection").exists()
