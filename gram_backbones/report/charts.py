"""Line charts as SVG that takes the page's text colour, so that it suits light and dark schemes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

# Seen on white and on black; after Okabe and Ito's palette for all kinds of colour vision.
COLOURS = ("#2a87d0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_POINTS = 1000  # of a line; a chart is not as many pixels wide
_INSIDE = 4  # names inside the axes; others are below
_TEXT = "#010203"  # stands for the page's text colour
_STYLE = {
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": _TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text, which the reader's fonts draw
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


@dataclass(frozen=True)
class Line:
    """A line of a chart: its points x, y, the name in the legend, which colour and dashes."""

    points: Sequence[tuple[float, float]]
    label: str = ""
    colour: int = 0
    dashed: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """A chart 360 points wide, the width of a phone, as an ``<svg>`` element.

    Args:
        title: above the chart; also read aloud in its place.
        lines: one or more.
        x_label: below the chart.
        limits: of both axes; by default, those of the data, and x from 0.

    Raises:
        ImportError: matplotlib is missing.

    Examples:
        >>> line_chart("loss", [Line([(20, 2.5), (40, 1.5)])], x_label="iteration")[:47]
        '<svg class="chart" role="img" aria-label="loss"'
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "charts take matplotlib, which is not installed: pip install gram-backbones[analysis]"
        ) from error
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5, 3.2), layout="constrained")  # 72 points an inch
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x_label)
        if limits:
            axes.set(xlim=limits, ylim=(limits[0], limits[1] * 1.02))
        else:
            axes.set_xlim(left=0)
            axes.locator_params("x", integer=True)
        if any(line.label for line in lines):
            _add_legend(axes, sum(bool(line.label) for line in lines))
        file = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
    return _inline(file.getvalue(), title)


def _draw(axes: Any, line: Line) -> None:
    count = len(line.points)
    kept = np.linspace(0, count - 1, min(_POINTS, count)).astype(int)
    axes.plot(
        *np.asarray(line.points)[kept].T,
        color=COLOURS[line.colour % len(COLOURS)],
        linestyle="--" if line.dashed else "-",
        linewidth=1.8,
        marker="o" if count <= 12 else None,  # a single point has no line
        markersize=4,
        markerfacecolor="none" if line.dashed else None,
        label=line.label or None,
    )


def _add_legend(axes: Any, count: int) -> None:
    """Inside the axes, or below where there are so many lines that it would cover some."""
    if count <= _INSIDE:
        axes.legend(fontsize=9, handlelength=1.6)
        return
    axes.figure.set_figheight(axes.figure.get_figheight() + 0.2 * math.ceil(count / 3))
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=1.6)


def _inline(svg: str, title: str) -> str:
    """The ``<svg>`` of a file, as wide as its place in the page."""
    head, _, body = svg[svg.index("<svg") :].partition(">")
    view = re.findall('viewBox="[^"]*"', head)[0]
    body = re.sub('<g id="[^"]*">', "<g>", body)  # the same in every chart, and not referred to
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" {view}>'
    return head + body.replace(_TEXT, "currentColor")
