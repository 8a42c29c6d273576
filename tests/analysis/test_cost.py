"""Counting on the meta device, by parts, on real images, and the command that prints it."""

import pytest
import torch
from PIL import Image
from torch import nn

from gram_backbones import DGNet, cli
from gram_backbones.analysis.cost import (
    PARTS,
    Cost,
    build_on_meta,
    flops_over_images,
    measure,
    open_image,
)
from gram_backbones.analysis.cost_table import detector_rows
from gram_backbones.analysis.published import PAPERS, draw_chart, torchvision_figures
from gram_backbones.dgnet.graph import dynamic_graphs
from gram_backbones.flops import count_conv_flops, count_parameters
from gram_backbones.preprocessing import CIFAR_RGB
from gram_backbones.registry import build_model, list_models

COUNTS = ("parameters", "trainable", "conv_flops", "flops", "activations", "saved")


@pytest.mark.grid
@pytest.mark.parametrize("by", PARTS)
@pytest.mark.parametrize(
    "name", (pytest.param("aognet_4m", marks=pytest.mark.slow), "dgnet_mobilenet_v2")
)
def test_parts_add_up_to_what_a_real_network_computes(name, by):
    model = build_on_meta(name)
    whole, parts = measure(model, (64, 64), PARTS[by](model))
    for count in COUNTS:
        total = sum(getattr(cost, count) for cost in parts.values())
        assert total == pytest.approx(getattr(whole, count)), count
    real = build_model(name)
    assert whole.parameters == count_parameters(real)
    assert whole.conv_flops == count_conv_flops(real, 64)


def small_network():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )


def test_every_count_by_hand():
    network, pixels = small_network(), 6 * 10
    whole, parts = measure(network, (6, 10), {"head": [network[5]]})
    assert whole.parameters == 8 * 27 + 8 * 4 + 25 == whole.trainable
    assert whole.conv_flops == pixels * (8 * 27 + 8 * 4)
    assert parts["head"].flops == 20 and whole.flops == whole.conv_flops + 20
    assert whole.activations == pixels * 12 + 5
    # The image, what the ReLU puts out, and what the linear layer takes. A mean keeps nothing.
    assert whole.saved == 4 * (pixels * (3 + 8) + 4)


def test_frozen_layers_save_nothing_and_have_no_gradient():
    network = small_network()
    whole, _ = measure(network, (6, 10))
    network[0].requires_grad_(False)
    frozen, _ = measure(network, (6, 10))
    assert frozen.parameters == whole.parameters and frozen.trainable == whole.trainable - 216
    assert whole.saved - frozen.saved == 4 * 60 * 3
    assert Cost(parameters=10, trainable=4, saved=7).training_bytes(3) == 40 + 32 + 21


def test_a_part_inside_a_part_counts_once():
    network = nn.Sequential(small_network())
    inner = network[0][2]
    whole, parts = measure(network, (6, 10), {"inner": [inner], "outer": [network[0]]})
    assert parts["inner"].conv_flops == 60 * 32 and parts["inner"].parameters == 32
    assert parts["outer"].conv_flops == whole.conv_flops - 60 * 32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_networks_with_values_are_refused():
    with pytest.raises(ValueError, match=r"the network is on \['cpu'\]"):
        measure(nn.Conv2d(3, 4, 1), (6, 10))


def test_closed_blocks_do_not_count():
    torch.manual_seed(0)
    model = DGNet("dgnet_cifar_r20", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    opened = flops_over_images(model, images)
    assert opened.flops == (opened.every_edge,) * 2 and opened.closed_blocks == 0
    for graph in dynamic_graphs(model).values():
        graph.open_chain(0.5, -9.0, -9.0)  # every α is far below τ
    closed = flops_over_images(model, images)
    counted = build_on_meta("dgnet_cifar_r20")
    _, nodes = measure(counted, (32, 32), PARTS["node"](counted))
    blocks = sum(cost.conv_flops for path, cost in nodes.items() if path.startswith("layer"))
    assert closed.every_edge == opened.every_edge and closed.closed_blocks == 1
    assert closed.flops == (closed.every_edge - blocks,) * 2 and closed.mean == closed.flops[0]


def test_networks_without_dynamic_edges_and_no_images_are_refused():
    with pytest.raises(ValueError, match="no edge of the network depends on the image"):
        flops_over_images(build_model("aognet_4m"), [torch.zeros(3, 64, 64)])
    with pytest.raises(ValueError, match="there are no images"):
        flops_over_images(build_model("dgnet_cifar_r20"), [])


def test_an_image_is_scaled_cropped_and_normalised(tmp_path):
    Image.new("RGB", (90, 50), (125, 123, 114)).save(tmp_path / "grey.png")
    image = open_image(tmp_path / "grey.png", CIFAR_RGB, (48, 64))
    assert image.shape == (3, 48, 64) and image.abs().max() < 0.01


def test_published_figures_are_of_models_that_there_are():
    assert PAPERS.keys() <= set(list_models())
    assert torchvision_figures("mobilenet_v2").conv_flops == 0.301e9


def test_a_chart_has_an_ending_that_matplotlib_writes(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="chart.gif2'; allowed are files that end in"):
        draw_chart({}, tmp_path / "chart.gif2")
    assert not any(tmp_path.iterdir())


def printed(capsys, *arguments):
    """The table's cells, by the names of the rows."""
    cli.main(["cost", *arguments])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows}


def test_table_2_of_dg_net_is_beside_its_backbone(capsys):
    row = printed(capsys, "dgnet_r50", "--size", "800x1333")["`dgnet_r50`"]
    assert row[1:3] == ["87.333", "88 G (−0.8 %)"] and row[-1] == "800×1333"


def test_a_detector_s_parts_add_up():
    with torch.device("meta"):
        backbone, head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        detector = nn.ModuleList([backbone, head, nn.Linear(10, 10, bias=False)])
    parts = {"backbone": [backbone], "head": [head]}
    rows = [*detector_rows("mine.yaml", detector, nn.Sequential(backbone, head), parts, (40, 64))]
    assert [row.name for row in rows[1:]] == ["· backbone", "· head", "· RoI heads and other parts"]
    assert rows[0].size == (64, 64) and rows[3].cells()[1:3] == ["100", "–"]
    assert rows[0].cost.parameters == sum(row.cost.parameters for row in rows[1:]) == 112 + 10 + 100
    assert rows[0].cost.conv_flops == 64 * 64 * (3 * 4 * 9 + 4 * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "config", "neck"),
    (
        ("detectron2", "faster_rcnn_dgnet_r50_fpn_1x", "pyramid"),
        ("mmdet", "faster-rcnn_dgnet-r50_fpn_1x_coco", "neck"),
    ),
)
def test_both_frameworks_detectors_cost_the_same(capsys, module, config, neck):
    pytest.importorskip(module)
    rows = printed(capsys, config, "--by", "stage")
    assert [*rows][1:4] == [f"`{config}`", "· backbone", "·· stem"]
    assert rows["· backbone"][1:3] == ["87.581", "88 G (−0.5 %)"]
    flops = [float(rows[part][1]) for part in ("· backbone", f"· {neck}", "· RPN head")]
    assert sum(flops) == pytest.approx(float(rows[f"`{config}`"][1]), abs=0.002)
    numbers = [int(cells[0].replace(",", "")) for name, cells in rows.items() if "· " in name[:2]]
    assert sum(numbers) == int(rows[f"`{config}`"][0].replace(",", ""))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        (["aognet_4m", "--size", "0"], "'0' is no size; allowed are 224 or 800x1333"),
        (["aognet_4m", "--size", "32x0"], "'32x0' is no size; allowed are 224 or 800x1333"),
        (["aognet_4m", "--size", "3"], "images of 3×3 pixels do not fit: "),
        (["aognet_4m", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (["aognet_4m", "--weights", "w.pth"], "--weights is for --images, which is not given"),
        (["--images", "a.jpg"], "--images is for one model, and 0 are named"),
        (["dgnet_r18", "--images", "gone.jpg"], "there is no image, video or folder"),
        (["dgnet_r18", "--images", __file__], f"cannot read picture {__file__}"),
        (
            ["aognet_4m", "--images", __file__],
            "--images is for DG-Nets; no edge of aognet_4m depends",
        ),
        (["gone.yaml"], "there is no config 'gone.yaml'"),
        (["dgnet_cifar_r20", "--chart", "chart.png"], "--chart is for ImageNet's models at 224"),
        (["aognet_4m", "--chart", "gone/chart.png"], "there is no folder gone"),
        (["retinanet_aognet40m_fpn_1x", "--chart", "c.png"], "--chart is for models by name"),
    ),
)
def test_wrong_input_ends_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        cli.main(["cost", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
