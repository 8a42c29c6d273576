"""Connectivity over data sets: matrices of the forward pass, and the FLOPs that ran."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from gram_backbones import DGNet, cli, record_connectivity
from gram_backbones.analysis.connectivity import (
    BINS,
    EdgeStatistics,
    Skipped,
    block_flops,
    observe,
    one_threshold,
    stage_labels,
)
from gram_backbones.analysis.pictures import list_pictures, normalised, resized
from gram_backbones.dgnet.graph import DynamicGraph
from gram_backbones.flops import count_conv_flops

pytest.importorskip("matplotlib")


def varied(name="dgnet_cifar_r20", **options):
    """A network whose edges differ between images, some of them closed."""
    model = DGNet(name, **options).eval()
    for graph in model.graphs.values():
        for router in graph.routers:
            torch.nn.init.normal_(router.weight, std=0.3)
            torch.nn.init.normal_(router.bias, std=1.5)
        torch.nn.init.constant_(graph.thresholds, 0.4)
    return model


def images(count, size=32):
    return [(torch.randn(1, 3, size, size + 8 * (i % 2)), None) for i in range(count)]


def test_matrices_are_those_recorded_in_the_forward_pass():
    model, inputs = varied(), images(5)
    seen = list(observe(model, inputs, [0.7]))
    for (image, _), one in zip(inputs, seen):
        with torch.no_grad(), record_connectivity(model) as records:
            model(image)
        for name, label in stage_labels(model).items():
            assert (one.matrices[label] == records[name][0][0].double().numpy()).all()
    assert len({tuple(one.matrices["res3"].ravel()) for one in seen}) == 5  # differ by image
    assert 0 < seen[0].skipped[0].closed_edges < seen[0].skipped[0].edges


@pytest.mark.grid
@pytest.mark.parametrize("name", ("dgnet_cifar_r20", "dgnet_r18", "dgnet_mobilenet_v2"))
def test_flops_are_those_that_ran(name):
    model, skipped = varied(name), set()
    thresholds = [0.3, 0.6, 0.8]
    for image, sizes in images(3, 64):
        (seen,) = observe(model, [(image, sizes)], thresholds)
        assert seen.skipped[0].flops - seen.skipped[0].skipped_flops == count_conv_flops(
            model, image
        )
        for threshold, row in zip(thresholds, seen.skipped[1:]):
            with one_threshold(model, threshold):
                assert row.flops - row.skipped_flops == count_conv_flops(model, image)
            skipped.add(row.skipped_blocks)
    assert len(skipped) > 2


def test_a_block_that_no_open_edge_feeds_is_skipped():
    model = DGNet("dgnet_cifar_r20").eval()
    torch.nn.init.constant_(model.graphs["2"].thresholds[:1], 2.0)
    (seen,) = observe(model, images(1))
    # Four edges touch the block. Its convolutions are 3 × 3, 32 to 64 and 64 to 64 channels, at
    # 8 × 8; the projection beside them feeds the other nodes.
    flops = 9 * (32 * 64 + 64 * 64) * 64
    assert seen.skipped == (Skipped(None, 30, 4, 9, 1, 40_550_400, flops),)


def test_a_threshold_closes_edges_of_any_gate_and_goes_again():
    model = DGNet("dgnet_cifar_r20", gate="soft").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (seen,) = observe(model, images(1), [0.5])
    assert seen.skipped[0].closed_edges == 0 < seen.skipped[1].closed_edges
    assert all((value == before[key]).all() for key, value in model.state_dict().items())
    assert {m.gate for m in model.modules() if isinstance(m, DynamicGraph)} == {"soft"}


def test_running_statistics_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    matrices = np.tril(1e-4 * rng.random((40, 5, 5)) + 0.7, -1)  # hardly vary
    matrices[::3, 2, 1] = 0
    members = [sorted(rng.choice(3, rng.integers(0, 3), replace=False)) for _ in matrices]
    edges = EdgeStatistics(["a", "b", "c", "none"])
    for matrix, categories in zip(matrices, members):
        edges.add(matrix, categories)
    is_edge = np.tri(5, k=-1, dtype=bool)
    for group, chosen in enumerate(
        [matrices, *(matrices[[c in m for m in members]] for c in range(3))]
    ):
        assert edges.count[group] == len(chosen) > 5
        np.testing.assert_allclose(edges.mean[group], chosen.mean(0), rtol=1e-12)
        np.testing.assert_allclose(edges.std[group], chosen.std(0), rtol=1e-6, atol=1e-16)
        np.testing.assert_allclose(edges.is_open[group], (chosen != 0).mean(0))
        assert (edges.histogram[group].sum(-1)[is_edge] == len(chosen)).all()
    assert edges.histogram[0, 2, 1, 0] == 14 and edges.histogram[0, 2, 1, int(0.7 * BINS)] == 26
    assert np.isnan(edges.mean[4][is_edge]).all()
    assert "none" not in {row["category"] for row in edges.rows()}


def test_images_are_read_one_by_one():
    read = []

    def inputs():
        for i, image in enumerate(images(3)):
            read.append(i)
            yield image

    seen = observe(varied(), inputs())
    next(seen)
    assert read == [0]


def test_networks_without_dynamic_edges_and_batches_are_refused():
    with pytest.raises(ValueError, match="is a DGNet without dynamic edges"):
        block_flops(DGNet("dgnet_cifar_r20", edges="static"), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="a batch has 2 images; allowed is one"):
        next(observe(varied(), [(torch.zeros(2, 3, 32, 32), None)]))
    with pytest.raises(ValueError, match="threshold is 1.5; allowed are 0 to 1"):
        next(observe(varied(), images(1), [1.5]))


@pytest.fixture
def by_folder(tmp_path):
    """Pictures in a folder for each of two categories."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))
            picture.save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def run(*arguments):
    cli.main(["connectivity", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_writes_what_was_observed(by_folder, tmp_path, capsys):
    out, weights = tmp_path / "out", tmp_path / "weights.pth"
    model = varied()
    torch.save(model.state_dict(), weights)
    pictures, names = list_pictures([str(by_folder)])
    (by_folder / "cat/00.png").write_text("no picture")
    with pytest.raises(SystemExit) as ended:
        run(by_folder, "--model", "dgnet_cifar_r20", "--weights", weights, "--output", out,
            "--thresholds", "0.9", "--graphs", "1")  # fmt: skip
    assert str(ended.value).endswith("connectivity: 1 of 5 images cannot be read")
    said = capsys.readouterr()
    assert "| learned |" in said.out and f"cannot read picture {by_folder}/cat/00.png" in said.err
    assert names == ("cat", "dog") and [p.categories for p in pictures] == [(0,), (0,), (1,), (1,)]
    inputs = [
        (
            normalised(resized(Image.open(p.path).convert("RGB"), 32), model.variant.preprocessing),
            None,
        )
        for p in pictures
    ]
    seen = list(observe(model, inputs, [0.9]))
    arrays = np.load(out / "statistics.npz")
    assert arrays["categories"].tolist() == ["", "cat", "dog"]
    for stage in ("res2", "res3", "res4"):
        matrices = np.stack([one.matrices[stage] for one in seen])
        np.testing.assert_allclose(arrays[f"{stage}/mean"][0], matrices.mean(0), rtol=1e-12)
        np.testing.assert_allclose(arrays[f"{stage}/std"][2], matrices[2:].std(0), atol=1e-12)
    rows = list(csv.DictReader((out / "images.csv").open()))
    assert [row["image"] for row in rows[::2]] == [str(picture.path) for picture in pictures]
    assert [row["skipped_flops"] for row in rows] == [
        str(row.skipped_flops) for one in seen for row in one.skipped
    ]
    drawn = {"mean.png", "std.png", "skipped.png", "graph-1-0.png"}
    drawn |= {f"categories-{stage}.png" for stage in ("res2", "res3", "res4")}
    tables = {"edges.csv", "images.csv", "skipped.csv", "statistics.npz"}
    assert {file.name for file in out.iterdir()} == drawn | tables


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (["gone.jpg", "--model", "dgnet_cifar_r20"], "there is no picture gone.jpg"),
        (["empty", "--model", "dgnet_cifar_r20"], "there are no pictures in empty"),
        (["text.png", "--model", "dgnet_cifar_r20"], "cannot read picture text.png"),
        (["data", "--model", "dgnet_cifar_r2O"], "did you mean 'dgnet_cifar_r20'"),
        (["data", "--model", "aognet_cifar_4m"], "there is no model named 'aognet_cifar_4m'"),
        (["data", "--model", "dgnet_cifar_r20", "--weights", "gone.pth"], "gone.pth"),
        (["data", "--model", "dgnet_cifar_r20", "--thresholds", "2"], "allowed are 0 to 1"),
        (["data", "--model", "dgnet_cifar_r20", "--size", "0"], "--size is 0"),
        (["data", "--model", "dgnet_cifar_r20", "--model-kwargs", "edges=static"], "only a DG-Net"),
        (["data", "--config", "mask_rcnn_dgnet_r50_fpn_1x"], "--config needs --weights"),
        (["data", "--config", "gone", "--weights", "w.pth"], "there is no config 'gone'"),
        (["x=gone.json:.", "--model", "dgnet_cifar_r20"], "does not exist"),
    ),
)  # fmt: skip
def test_wrong_input_ends_in_a_sentence(arguments, sentence, by_folder, monkeypatch, capsys):
    monkeypatch.chdir(by_folder.parent)
    (by_folder.parent / "empty").mkdir()
    (by_folder.parent / "text.png").write_text("no picture")
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (by_folder.parent / "connectivity").exists()


def test_an_aognet_is_refused(by_folder, capsys):
    with pytest.raises(SystemExit):
        run(by_folder, "--model", "aognet_4m")
    assert "only a DG-Net has them" in capsys.readouterr().err


def test_categories_of_a_coco_data_set(by_folder, tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "cat/0.png"}, {"id": 8, "file_name": "dog/1.png"}],
        "annotations": [
            {"image_id": 7, "category_id": 30},
            {"image_id": 7, "category_id": 4},
            {"image_id": 7, "category_id": 30},
        ],
        "categories": [{"id": 30, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    pictures, names = list_pictures([f"own={file}:{by_folder}"])
    assert names == ("cat", "dog")
    assert [picture.categories for picture in pictures] == [(0, 1), ()]
    content["annotations"].append({"image_id": 9, "category_id": 4})
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an annotation is of no image or category"):
        list_pictures([f"own={file}:{by_folder}"])
