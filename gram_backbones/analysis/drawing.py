"""Drawings of grammars with matplotlib, as in Figures 1, 3 and 4 of the AOGNet paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
except ImportError as error:
    raise ImportError(
        f"gram_backbones.analysis draws with matplotlib, which cannot be imported ({error}): "
        "pip install gram-backbones[analysis]"
    ) from error

from ..atomic import replacing
from ..grammar import AndOrGraph, NodeType
from .layout import TITLE, Layout, PlacedEdge, PlacedNode, SpanBox, lay_out

FORMATS = (".png", ".svg")
RADIUS, RING = 0.2, 0.23  # inches, of nodes and of the outer ring of OR-nodes
# The page shows between the boxes, light or dark: what lies there is of middle brightness, and all
# text is on a light ground of its own.
COLOURS = {NodeType.OR: "#2563a8", NodeType.AND: "#2c7a4b", NodeType.T: "#6b4fa0"}
SYNTACTIC, LATERAL, PRUNED = "#7d8794", "#e0447c", "#b3832a"
BOX, BOX_EDGE, TEXT = "#f4f6f8", "#9aa3ae", "#1c232b"
ENTRY = 1.6, 0.21  # inches, width and height of the legend's entries


def draw_grammar(graph: AndOrGraph, *, title: str = "", show_pruned: bool = True) -> Figure:
    """Draw a block's graph: OR-, AND- and T-nodes by span, with syntactic and lateral edges.

    Every node shows its id, an AND-node also how many words are left and right of its split. A box
    holds all nodes of one span and shows n(v), their number of paths to the root.

    Args:
        graph: of a block.
        title: above the legend.
        show_pruned: draw dashed what pruning removed from the full graph.

    Returns:
        The figure, on a transparent ground; one unit of its axes is an inch.

    Examples:
        >>> from gram_backbones.grammar import build_graph
        >>> figure = draw_grammar(build_graph(4, pruning="keep_first"))
        >>> len([text for text in figure.axes[0].texts if text.get_text().startswith("word")])
        10
    """
    layout = lay_out(graph, show_pruned=show_pruned)
    entries = legend_entries(layout)
    columns = min(len(entries), int(layout.width / ENTRY[0]))
    rows = -(-len(entries) // columns) + bool(title)
    height = layout.height + rows * ENTRY[1] + 0.25
    figure = Figure((layout.width + 0.1, height + 0.05), facecolor="none")
    draw_layout(add_axes(figure, (0.05, 0.05, layout.width, layout.height)), layout)
    draw_legend(figure, entries, columns, title)
    return figure


def add_axes(figure: Figure, rectangle: tuple[float, float, float, float]) -> Axes:
    """Axes without ticks whose unit is an inch.

    Args:
        figure: with its final size.
        rectangle: left, bottom, width and height in inches.
    """
    x, y, width, height = rectangle
    wide, high = figure.get_size_inches()
    ax = figure.add_axes((x / wide, y / high, width / wide, height / high))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return ax


def draw_layout(
    ax: Axes,
    layout: Layout,
    *,
    fills: Mapping[int, Any] | None = None,
    labels: Mapping[int, str] | None = None,
    strong: Collection[tuple[int, int]] = (),
) -> None:
    """Draw a placed graph into axes whose unit is an inch.

    Args:
        ax: see :func:`add_axes`.
        layout: of :func:`gram_backbones.analysis.layout.lay_out`.
        fills: colours of nodes by id; by default those of their types.
        labels: second lines of nodes by id; by default the splits of AND-nodes.
        strong: ids of source and target of syntactic edges to draw thick.
    """
    for box in layout.boxes:
        _draw_box(ax, box)
    for edge in layout.edges:
        _draw_edge(ax, edge, (edge.source.node.id, edge.target.node.id) in strong)
    for place in layout.nodes:
        node = place.node
        label = f"{node.left_words}+{node.length - node.left_words}" if node.left_words else ""
        if place.pruned:
            _draw_node(ax, place, "none", label)
            continue
        fill = COLOURS[node.type] if fills is None else fills[node.id]
        _draw_node(ax, place, fill, label if labels is None else labels[node.id])


def _draw_box(ax: Axes, box: SpanBox) -> None:
    pruned = box.paths_to_root is None
    first, last = box.span
    words = f"word {first}" if first == last else f"words {first}–{last}"
    style: dict[str, Any] = dict(boxstyle="round,pad=0,rounding_size=0.08", zorder=0)
    line: dict[str, Any] = (
        dict(linestyle="--", edgecolor=PRUNED) if pruned else dict(edgecolor=BOX_EDGE)
    )
    corner = (box.x, box.y)
    ax.add_patch(FancyBboxPatch(corner, box.width, box.height, facecolor=BOX, **style, **line))
    text = words if pruned else f"{words}, n = {box.paths_to_root}"
    at = (box.x + box.width / 2, box.y + box.height - TITLE / 2 - 0.03)
    ground = dict(facecolor=BOX, edgecolor="none", pad=0.8)  # edges pass below the text
    ax.text(*at, text, ha="center", va="center", fontsize=7.5, color=TEXT, zorder=5, bbox=ground)


def _draw_edge(ax: Axes, edge: PlacedEdge, strong: bool) -> None:
    source, target = edge.source, edge.target
    look: dict[str, Any] = dict(color=SYNTACTIC, linewidth=1.1, arrowstyle="-", zorder=2)
    if edge.lateral:
        head = "-|>,head_length=4,head_width=2.5"
        look = dict(color=LATERAL, linewidth=1.4, arrowstyle=head, zorder=3)
    elif edge.pruned:
        look |= dict(color=PRUNED, linestyle="--")
    elif strong:
        look |= dict(color=TEXT, linewidth=2.6, zorder=3)
    ends: dict[str, Any] = dict(posA=(source.x, source.y), posB=(target.x, target.y))
    shrink = dict.fromkeys(("shrinkA", "shrinkB"), 72 * RING)
    arc: dict[str, Any] = dict(connectionstyle=f"arc3,rad={edge.bend}", **shrink)
    ax.add_patch(FancyArrowPatch(**ends, **arc, **look))


def _draw_node(ax: Axes, place: PlacedNode, fill: Any, label: str) -> None:
    line = PRUNED if place.pruned else TEXT
    look: dict[str, Any] = dict(
        facecolor=BOX if place.pruned else fill,
        edgecolor=line,
        linestyle="--" if place.pruned else "-",
        linewidth=1.0,
        zorder=4,
    )
    x, y = place.x, place.y
    if place.node.type is NodeType.T:
        side = 1.75 * RADIUS
        ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, **look))
    else:
        if place.node.type is NodeType.OR:  # two rings: alternatives
            ax.add_patch(Circle((x, y), RING, **{**look, "facecolor": BOX}))
        ax.add_patch(Circle((x, y), RADIUS, **look))
    red, green, blue = matplotlib.colors.to_rgb(look["facecolor"])
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    colour = line if place.pruned else "white" if dark else TEXT
    number = "" if place.pruned else str(place.node.id)
    text: dict[str, Any] = dict(ha="center", va="center", color=colour, zorder=5)
    if number and label:
        ax.text(x, y + 0.07, number, fontsize=8.5, fontweight="bold", **text)
        ax.text(x, y - 0.08, label, fontsize=7, **text)
    elif number:
        ax.text(x, y - 0.005, number, fontsize=9.5, fontweight="bold", **text)
    else:
        ax.text(x, y, label, fontsize=7, **text)


def legend_entries(layout: Layout, *, plain: bool = False) -> list[Any]:
    """The kinds of nodes and edges that a layout has, for a legend.

    Args:
        layout: what is drawn.
        plain: nodes have other colours than those of their types.
    """
    marker: dict[str, Any] = dict(linestyle="none", markersize=9, markeredgecolor=TEXT)
    kinds = {NodeType.OR: ("o", "OR: sum"), NodeType.AND: ("o", "AND: concatenate")}
    kinds[NodeType.T] = ("s", "T: slice of words")
    entries: list[Any] = [
        Line2D([], [], marker=shape, color=BOX if plain else COLOURS[type], label=label, **marker)
        for type, (shape, label) in kinds.items()
    ]
    entries.append(Line2D([], [], color=SYNTACTIC, label="syntactic edge"))
    if any(edge.lateral for edge in layout.edges):
        entries.append(Line2D([], [], color=LATERAL, label="lateral edge"))
    if any(node.pruned for node in layout.nodes):
        entries.append(Line2D([], [], color=PRUNED, linestyle="--", label="pruned"))
    return entries


def draw_legend(
    figure: Figure,
    entries: list[Any],
    columns: int,
    title: str = "",
    anchor: tuple[float, float] = (0.5, 1),
) -> None:
    """A legend whose top is at a point of a figure, on its own light ground.

    Args:
        figure: to draw in.
        entries: of :func:`legend_entries`.
        columns: of entries.
        title: above them.
        anchor: x and y of the middle of the legend's top, as shares of the figure.
    """
    legend = figure.legend(
        bbox_to_anchor=anchor,
        handles=entries,
        title=title or None,
        loc="upper center",
        ncols=columns,
        columnspacing=1.2,
        fontsize=8,
        facecolor=BOX,
        edgecolor=BOX_EDGE,
        labelcolor=TEXT,
        framealpha=1,
    )
    legend.get_title().set(color=TEXT, fontsize=9, fontweight="bold")


def check_output(path: str | Path) -> Path:
    """The path of a picture, if one can be written there.

    Raises:
        ValueError: its suffix is not that of a format, or there is no such folder.

    Examples:
        >>> check_output("grammar.svg").suffix
        '.svg'
        >>> check_output("grammar.gif")
        Traceback (most recent call last):
        ValueError: the output is 'grammar.gif'; its suffix must be .png or .svg
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"the output is {str(path)!r}; its suffix must be {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"the output is {str(path)!r}, but there is no folder {path.parent}")
    return path


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG or SVG, whole or not at all; the same figure gives the same file.

    Args:
        figure: of this package.
        path: of the picture.

    Raises:
        ValueError: see :func:`check_output`.
    """
    path = check_output(path)
    kind = path.suffix.lower()[1:]
    # Text as text: small files that can be searched.
    options: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "gram_backbones"}
    metadata = {"Date": None} if kind == "svg" else None
    with replacing(path) as part, matplotlib.rc_context(options):
        figure.savefig(part, format=kind, dpi=144, metadata=metadata)
