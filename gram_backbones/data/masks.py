"""Masks of COCO's annotations that no framework can use: polygons and run lengths."""

from __future__ import annotations

import sys
from typing import Any

# A point farther outside than this many sizes of the picture costs the decoder time and memory.
_FAR = 1.0


def mask_problem(segmentation: Any, width: float, height: float) -> tuple[str, str] | None:
    """What is wrong with an annotation's mask.

    Args:
        segmentation: polygons, each a list of x and y in pixels, or run lengths (RLE), a dict.
        width, height: of the picture in pixels.

    Returns:
        A kind of :mod:`gram_backbones.data.checking` and the reason, or None for a sound mask.

    Examples:
        >>> mask_problem([[1, 1, 5, 1, 5, 5]], 8, 8)
        >>> mask_problem([[1, 1, 5, 5]], 8, 8)
        ('invalid polygon', '1 of 1 polygons has fewer than 3 points or an odd number of...
        >>> mask_problem({"size": [8, 6], "counts": [48]}, 8, 8)
        ('malformed mask', 'the RLE has size [8, 6]; [height, width] is [8, 8]')
    """
    if isinstance(segmentation, dict):
        reason = _rle_problem(segmentation, width, height)
        return ("malformed mask", reason) if reason else None
    if not isinstance(segmentation, list):
        return "malformed mask", f"it is {segmentation!r}; allowed are polygons and an RLE"
    for polygon in segmentation:
        if reason := _polygon_problem(polygon):
            return "malformed mask", reason
    if bad := sum(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        has = "has" if bad == 1 else "have"
        return (
            "invalid polygon",
            f"{bad} of {len(segmentation)} polygons {has} fewer than 3 points or an odd number of "
            "coordinates",
        )
    for polygon in segmentation:
        if reason := _outside(polygon, width, height):
            return "mask outside the picture", reason
    return None


def _polygon_problem(polygon: Any) -> str | None:
    if not isinstance(polygon, list):
        return f"a polygon is {polygon!r}; allowed are lists of numbers"
    # A set of types and a sum: millions of coordinates are looked at before every training.
    numbers = {*map(type, polygon)} <= {int, float}
    if not numbers or not abs(sum(polygon)) <= sys.float_info.max:
        return f"a polygon has coordinates that are no numbers: {polygon[:8]}"
    return None


def _outside(polygon: list[float], width: float, height: float) -> str | None:
    xs, ys = polygon[::2], polygon[1::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    beside = right <= 0 or bottom <= 0 or left >= width or top >= height
    over = max(-left, right - width) / width, max(-top, bottom - height) / height
    if beside or max(over) > _FAR:
        return f"a polygon reaches from ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
    return None


def _rle_problem(rle: dict[str, Any], width: float, height: float) -> str | None:
    if not {"size", "counts"} <= rle.keys():
        return f"it is a dict of {[*rle]}; an RLE has 'size' and 'counts'"
    counts = rle["counts"]
    if rle["size"] != [height, width]:
        return f"the RLE has size {rle['size']}; [height, width] is [{height}, {width}]"
    try:
        runs = _decoded(counts) if isinstance(counts, str) else counts
        total = sum(runs)
    except (IndexError, TypeError, ValueError):
        return f"the RLE's counts are no run lengths: {str(counts)[:40]!r}"
    if {*map(type, runs)} - {int} or min(runs, default=-1) < 0 or total != width * height:
        return f"the RLE's counts cover {total} pixels; the picture has {width * height}"
    return None


def _decoded(counts: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    pycocotools decodes it too, but reads and writes beyond its memory where the text is wrong.
    """
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value = shift = 0
        more = True
        while more:  # five bits a character, and one that says whether another follows
            bits = ord(counts[position]) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"{counts[position]!r} is no character of an RLE")
            value |= (bits & 31) << shift
            shift, position, more = shift + 5, position + 1, bool(bits & 32)
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
