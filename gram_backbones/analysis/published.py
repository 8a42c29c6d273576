"""Published figures to hold counts against: the papers', and torchvision's of its own networks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic import replacing


class Published(NamedTuple):
    """Figures of a network.

    Attributes:
        parameters: in all; None where nothing is said.
        conv_flops: multiply-adds for one image; None where nothing is said.
        top1: on ImageNet's validation set, in per cent; None for others.
    """

    parameters: float | None = None
    conv_flops: float | None = None
    top1: float | None = None


# AOGNet: Table 1, "Mobile settings" and Table 5 (32 pixels). DG-Net: Tables 1 and 5.
PAPERS = {
    "aognet_4m": Published(4.2e6, 557e6, 73.8),
    "aognet_12m": Published(11.9e6, 2.36e9, 77.72),
    "aognet_40m": Published(40.3e6, 8.86e9, 80.18),
    "aognet_60m": Published(60.7e6, 14.36e9, 80.66),
    "aognet_cifar_full": Published(4.24e6, 0.65e9),
    "aognet_cifar_full_lateral": Published(4.24e6, 0.65e9),
    "aognet_cifar_pruned": Published(4.23e6, 0.70e9),
    "aognet_cifar_pruned_lateral": Published(4.23e6, 0.70e9),
    "dgnet_mobilenet_v2": Published(3.58e6, 312e6, 73.54),
    "dgnet_r18": Published(11.71e6, 1826e6, 71.32),
    "dgnet_r50": Published(25.62e6, 4125e6, 78.28),
    "dgnet_r101": Published(44.90e6, 7837e6, 79.90),
    "dgnet_x50": Published(25.09e6, 4305e6, 79.39),
    "dgnet_regnetx_600m": Published(6.22e6, 600e6, 74.68),
    "dgnet_regnetx_1600m": Published(9.22e6, 1604e6, 77.91),
    "dgnet_regnety_600m": Published(6.3e6, 601e6, 77.0),
}
# DG-Net, Table 2: the backbone at 800 × 1333. The table counts a multiply-add as two operations:
# its 174 G for ResNet-50 are twice the 4087 M of Table 1, scaled by the pixels.
PAPER_BACKBONES = {
    "dgnet_r50": Published(None, 176e9 / 2),
    "dgnet_r101": Published(None, 335e9 / 2),
    "dgnet_x50": Published(None, 183e9 / 2),
}
PAPER_SIZE = (800, 1333)
# AOGNet, Table 4: whole detectors, by the names of our Detectron2 configs.
PAPER_DETECTORS = {
    "mask_rcnn_aognet12m_c4_1x": Published(14.6e6),
    "mask_rcnn_aognet40m_c4_1x": Published(48.1e6),
    "mask_rcnn_aognet12m_fpn_1x": Published(31.2e6),
    "mask_rcnn_aognet40m_fpn_1x": Published(59.4e6),
    "mask_rcnn_aognet60m_fpn_1x": Published(78.9e6),
}
# Peers in the chart: torchvision's families, shallow to deep.
PEERS = {
    "ResNet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "ResNeXt": ("resnext50_32x4d", "resnext101_32x8d"),
    "DenseNet": ("densenet121", "densenet169", "densenet201", "densenet161"),
    "RegNetX": (
        "regnet_x_400mf",
        "regnet_x_800mf",
        "regnet_x_1_6gf",
        "regnet_x_3_2gf",
        "regnet_x_8gf",
        "regnet_x_16gf",
    ),
    "MobileNet": ("mobilenet_v2", "mobilenet_v3_large"),
    "ConvNeXt": ("convnext_tiny", "convnext_small", "convnext_base"),
}


def paper_of_detector(config: str) -> Published | None:
    """The paper's figures of a shipped config of either framework, by its name.

    Examples:
        >>> paper_of_detector("mask-rcnn_aognet-12m_c4_1x_coco").parameters
        14600000.0
    """
    name = Path(config).stem.replace("mask-rcnn", "mask_rcnn").replace("aognet-", "aognet")
    return PAPER_DETECTORS.get(name.removesuffix("_coco"))


def torchvision_figures(name: str) -> Published:
    """What torchvision states of its first weights for ImageNet; nothing is downloaded.

    Examples:
        >>> torchvision_figures("resnet50")
        Published(parameters=25557032, conv_flops=4089000000, top1=76.13)
    """
    from torchvision.models import get_model_weights

    meta = get_model_weights(name)["IMAGENET1K_V1"].meta
    top1 = meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return Published(meta["num_params"], round(1e9 * meta["_ops"]), top1)


def draw_chart(families: Mapping[str, Mapping[str, Published]], file: str | Path) -> None:
    """Draw FLOPs over parameters, and top-1 over FLOPs, among torchvision's networks.

    Args:
        families: our networks by family and name, with both counts of images of 224 pixels and 1000
            classes, as torchvision's are. Those without a top-1 are in the first plot only.
        file: picture to write; its ending says the format.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not write files of this ending.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     draw_chart({"Mine": {"12m": Published(12e6, 2.4e9, 77.7)}}, f"{folder}/chart.png")
        ...     Path(folder, "chart.png").stat().st_size > 10_000
        True
    """
    figure = check_chart(file)
    counts, accuracy = figure.subplots(1, 2)
    for family, names in PEERS.items():
        peers = {name: torchvision_figures(name) for name in names}
        style: dict[str, Any] = dict(marker=".", linewidth=1, alpha=0.6)
        _draw(counts, peers, "parameters", "conv_flops", label=family, **style)
        _draw(accuracy, peers, "conv_flops", "top1", **style)
    marks = cycle((("*", 12, "gold"), ("D", 7, "tab:cyan"), ("s", 7, "tab:red")))
    for (marker, size, colour), (family, ours) in zip(marks, families.items()):
        style = dict(marker=marker, markersize=size, color=colour, markeredgecolor="black")
        style |= dict(linestyle="", zorder=3)
        for axes, x, y in ((counts, "parameters", "conv_flops"), (accuracy, "conv_flops", "top1")):
            _draw(axes, ours, x, y, label=family, **style)
    ours = {(family, name): p for family, row in families.items() for name, p in row.items()}
    _name(counts, ours, "parameters", "conv_flops")
    _name(accuracy, ours, "conv_flops", "top1")
    counts.set(xlabel="parameters, M", ylabel="conv GFLOPs at 224 px", xscale="log", yscale="log")
    accuracy.set(xlabel="conv GFLOPs at 224 px", ylabel="top-1 as published, %", xscale="log")
    for axes in (counts, accuracy):
        axes.margins(x=0.15)  # room for the names
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
    counts.yaxis.set_major_formatter("{x:g}")
    counts.legend(fontsize=8)
    with replacing(file) as part:
        figure.savefig(part, format=Path(file).suffix[1:], dpi=100)


def check_chart(file: str | Path) -> Any:
    """An empty figure, where matplotlib can write the file.

    Raises:
        FileNotFoundError: the file's folder does not exist.
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not write files of this ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a chart needs pip install gram-backbones[analysis]") from error
    figure = Figure(figsize=(11, 5), layout="constrained")
    known = sorted(figure.canvas.get_supported_filetypes())
    if Path(file).suffix[1:] not in known:
        raise ValueError(f"the chart is {str(file)!r}; allowed are files that end in {known}")
    if not Path(file).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(file).parent}")
    return figure


_UNITS = {"parameters": 1e6, "conv_flops": 1e9, "top1": 1.0}


def _draw(axes: Any, networks: Mapping[str, Published], x: str, y: str, **style: Any) -> None:
    """Mark networks that have both figures."""
    axes.plot(*zip(*_places(networks, x, y).values()), **style)


def _name(axes: Any, networks: Mapping[tuple[str, str], Published], x: str, y: str) -> None:
    """Write names beside marks, on both sides in turn: of two networks alike, both can be read."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2, foreground="white")]
    places = sorted(_places(networks, x, y).items(), key=itemgetter(1))
    for index, ((_, name), place) in enumerate(places):
        side: dict[str, Any] = (
            dict(xytext=(7, -10)) if index % 2 else dict(xytext=(-7, 5), ha="right")
        )
        side |= dict(textcoords="offset points", fontsize=8, zorder=4, path_effects=outline)
        axes.annotate(name, place, **side)


def _places(networks: Mapping[Any, Published], x: str, y: str) -> dict[Any, tuple[float, float]]:
    known = {n: p for n, p in networks.items() if getattr(p, x) and getattr(p, y)}
    return {n: (getattr(p, x) / _UNITS[x], getattr(p, y) / _UNITS[y]) for n, p in known.items()}
