"""Where an AOGNet looks: what nodes carry, Grad-CAM maps and the strongest parse in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
except ImportError as error:
    raise ImportError(
        "gram_backbones.analysis.explaining needs matplotlib and grad-cam, which cannot be "
        f"imported ({error}): pip install gram-backbones[analysis]"
    ) from error

from ..aognet import AOGNet
from ..data import naming_picture
from ..grammar import AndOrGraph, NodeType
from ..preprocessing import Preprocessing
from ..weights import WeightError, read_weights
from ..weights.loading import load_classifier_weights
from .contributions import BlockContributions, Parse, check_model, stage_blocks
from .drawing import (
    BOX,
    TEXT,
    add_axes,
    draw_layout,
    draw_legend,
    legend_entries,
)
from .grammars import find_aognet
from .layout import lay_out

MEASURES = ("to_root", "to_class", "rms")
TITLES = {
    "to_root": "share of the root's output",
    "to_class": "part of the class's logit",
    "rms": "root mean square of the output",
}
SIDE, MAP, EDGE = 2.5, 1.4, 0.15  # inches: image, Grad-CAM map, margin
LEAF = 0.62  # inches of a leaf of the parse tree
MOST_MAPS = 8


def load_aognet_classifier(name: str, weights: str | Path) -> AOGNet:
    """A trained classifier in eval mode, with as many classes as its file has.

    Args:
        name: of an AOGNet.
        weights: see :func:`gram_backbones.load_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is no AOGNet, the file has no classifier, or does not fit.
    """
    variant = find_aognet(name)
    tensors = read_weights(weights, variant).tensors
    sizes = [len(value) for key, value in tensors.items() if key.endswith("fc.bias")]
    if not sizes:
        raise WeightError(f"{weights} has no classifier (fc.weight, fc.bias)")
    model = AOGNet(variant, num_classes=sizes[0])
    load_classifier_weights(model, weights)
    return model.eval()


def read_square(path: str | Path, size: int) -> np.ndarray:
    """An image's central square, resized: RGB ``(size, size, 3)`` in [0, 255], uint8.

    Raises:
        PictureError: the file cannot be read as a picture.
    """
    with naming_picture(path), Image.open(path) as image:
        image = F.resize(image.convert("RGB"), [size], antialias=True)
        return np.asarray(F.center_crop(image, [size]))


def as_input(picture: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """A normalised image ``(1, 3, H, W)`` from RGB pixels ``(H, W, 3)`` in [0, 255].

    Examples:
        >>> from gram_backbones.preprocessing import CIFAR_RGB
        >>> as_input(np.zeros((32, 32, 3), np.uint8), CIFAR_RGB).shape
        torch.Size([1, 3, 32, 32])
    """
    pixels = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None]
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(1)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels - mean) / std


def grad_cam(
    model: AOGNet, image: Tensor, stage: int, block: int, nodes: Sequence[int], target: int
) -> dict[int, np.ndarray]:
    """Grad-CAM maps of nodes, by pytorch-grad-cam.

    Args:
        model: a classifier in eval mode.
        image: ``(1, 3, H, W)``, normalised.
        stage, block: of the nodes, both from 1.
        nodes: ids.
        target: index of the class.

    Returns:
        By id, maps ``(H, W)`` of the image's size in [0, 1].

    Raises:
        ValueError: the model cannot be explained, or there is no such node.

    Examples:
        >>> model = AOGNet("aognet_cifar_s_pruned", num_classes=10).eval()
        >>> maps = grad_cam(model, torch.randn(1, 3, 32, 32), 2, 1, nodes=[0], target=3)
        >>> maps[0].shape
        (32, 32)
    """
    check_model(model, image)
    ops = stage_blocks(model, stage)[block - 1].ops
    check_nodes(nodes, len(ops))
    maps = {}
    image = image.detach().clone().requires_grad_()
    before = [parameter.grad for parameter in model.parameters()]
    for node in nodes:
        with torch.enable_grad(), GradCAM(model=model, target_layers=[ops[node]]) as cam:
            maps[node] = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])[0]
    for parameter, gradient in zip(model.parameters(), before):
        parameter.grad = gradient
    return maps


def check_nodes(nodes: Sequence[int], count: int) -> None:
    """Check ids of nodes.

    Raises:
        ValueError: there is no such node in a graph with this number of nodes.
    """
    for node in nodes:
        if not 0 <= node < count:
            raise ValueError(f"there is no node {node}; the block has nodes 0 to {count - 1}")


def describe_node(graph: AndOrGraph, id: int) -> str:
    """A node's id, type and words.

    Examples:
        >>> from gram_backbones.grammar import build_graph
        >>> describe_node(build_graph(2), 5)
        '5: T, word 0'
    """
    node = graph.nodes[id]
    first, last = node.span
    return f"{id}: {node.type.value}, " + (
        f"word {first}" if first == last else f"words {first}–{last}"
    )


def format_amount(measure: str, amount: float) -> str:
    """A node's number as it is drawn.

    Examples:
        >>> format_amount("to_root", 0.254), format_amount("to_class", 0.254)
        ('25%', '+0.25')
    """
    if measure == "to_root":
        return f"{round(100 * amount)}%"
    return f"{amount:+.2f}" if measure == "to_class" else f"{amount:.2g}"


def draw_explanation(
    picture: np.ndarray,
    caption: str,
    block: BlockContributions,
    maps: Mapping[int, np.ndarray],
    *,
    measure: str = "to_root",
    title: str = "",
) -> Figure:
    """Draw an image, a block's grammar with what nodes carry, the strongest parse, and maps.

    Args:
        picture: RGB ``(H, W, 3)`` in [0, 255], uint8.
        caption: below the image.
        block: of :func:`gram_backbones.analysis.contributions.measure_contributions`.
        maps: of :func:`grad_cam`.
        measure: what is drawn: ``"to_root"``, ``"to_class"``, or ``"rms"``, where the parse is that
            of ``"to_root"``.
        title: above the grammar.

    Returns:
        The figure, on a white ground.
    """
    layout = lay_out(block.graph, show_pruned=False)
    parsed = "to_root" if measure == "rms" else measure
    tree = block.strongest_parse(parsed)
    left = max(SIDE, LEAF * block.graph.n_words)
    right = max(layout.width, 4.2)  # the legend's width at least
    columns = max(1, int((left + right + 2 * EDGE) / (MAP + EDGE)))
    bottom = math.ceil(len(maps) / columns) * (MAP + 0.4) + EDGE
    height = max(layout.height, 2 * SIDE + 1) + bottom + 0.9
    width = left + right + 3 * EDGE
    figure = Figure((width, height), facecolor="white")
    top = height - 0.2
    ax = add_axes(figure, (EDGE, top - SIDE, SIDE, SIDE))
    ax.imshow(picture, extent=(0, SIDE, 0, SIDE), interpolation="nearest")
    figure.text(EDGE / width, (top - SIDE - 0.1) / height, caption, va="top", fontsize=8.5)
    ax = add_axes(figure, (EDGE, bottom, left, height - bottom - SIDE - 1.1))
    _draw_parse(ax, tree, block.graph.n_words, parsed)
    centre = left + 2 * EDGE + right / 2
    at = (centre - layout.width / 2, height - 0.85 - layout.height, layout.width, layout.height)
    draw_layout(
        add_axes(figure, at),
        layout,
        fills=_fills(block, measure),
        labels={v.node.id: format_amount(measure, getattr(v, measure)) for v in block.nodes},
        strong=_parse_edges(block.graph, tree),
    )
    _draw_maps(figure, bottom, columns, picture, maps, block.graph)
    entries = legend_entries(layout, plain=True)
    heading = f"{title}: {TITLES[measure]}" if title else TITLES[measure]
    draw_legend(figure, entries, 3, heading, anchor=(centre / width, 1 - 0.08 / height))
    return figure


def _fills(block: BlockContributions, measure: str) -> dict[int, Any]:
    """Red for what adds, blue for what takes away, by the largest amount."""
    amounts = {v.node.id: getattr(v, measure) for v in block.nodes}
    most = max(map(abs, amounts.values())) or 1.0
    scale = matplotlib.colors.Normalize(-most, most)
    return {i: matplotlib.colormaps["RdBu_r"](scale(amount)) for i, amount in amounts.items()}


def _parse_edges(graph: AndOrGraph, tree: Parse) -> set[tuple[int, int]]:
    """Ids of the edges of a parse tree, with the OR-nodes between its parts."""
    # Of T- and AND-nodes, which have one each.
    parent = {i: node.id for node in graph.nodes if node.type is NodeType.OR for i in node.children}
    edges = set()
    for part in tree.walk():
        edges.add((part.node.id, parent[part.node.id]))
        edges |= {(child, part.node.id) for child in part.node.children}
    return edges


def _draw_parse(ax: Axes, tree: Parse, n_words: int, measure: str) -> None:
    """The strongest parse as a tree: leaves are T-nodes, in the order of their words."""
    (_, width), (_, height) = ax.get_xlim(), ax.get_ylim()

    def depth(part: Parse) -> int:
        return 1 + max(map(depth, part.parts), default=0)

    step = min(0.75, (height - 0.3) / depth(tree))

    def draw(part: Parse, y: float) -> tuple[float, float]:
        first, last = part.node.span
        x = (first + last + 1) / 2 / n_words * width
        for child in part.parts:
            to = draw(child, y - step)
            ax.plot([x, to[0]], [y, to[1]], color=TEXT, linewidth=1.2, zorder=1)
        words = f"{first}" if first == last else f"{first}–{last}"
        text = f"{part.node.type.value} {words}\n{format_amount(measure, part.amount)}"
        style = "round,pad=0.25" if part.parts else "square,pad=0.25"
        ground = dict(boxstyle=style, facecolor=BOX, edgecolor=TEXT)
        ax.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=ground, zorder=2)
        return x, y

    ax.text(0, height, "strongest parse", va="top", fontsize=9, fontweight="bold")
    draw(tree, height - 0.5)


def _draw_maps(
    figure: Figure,
    bottom: float,
    columns: int,
    picture: np.ndarray,
    maps: Mapping[int, np.ndarray],
    graph: AndOrGraph,
) -> None:
    for index, (id, values) in enumerate(maps.items()):
        row, column = divmod(index, columns)
        x, y = EDGE + column * (MAP + EDGE), bottom - (row + 1) * (MAP + 0.4)
        ax = add_axes(figure, (x, y, MAP, MAP + 0.25))
        overlay = show_cam_on_image(np.float32(picture) / 255, values, use_rgb=True)
        ax.imshow(overlay, extent=(0, MAP, 0, MAP), interpolation="nearest")
        ax.set(xlim=(0, MAP), ylim=(0, MAP + 0.25))
        ax.text(MAP / 2, MAP + 0.11, describe_node(graph, id), ha="center", va="center", fontsize=8)
