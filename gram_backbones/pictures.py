"""Pictures of detections: predictions alone, or on the left of the ground truth; and grids.

Both frameworks' adapters draw with these functions, so that their pictures are alike.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

SCORE_THRESH = 0.5
_BEST = 3  # instances to draw where none reaches the score
_MIN_SIDE = 400  # pixels; smaller images are drawn larger, so that labels fit
_FULL_SIDE = 800  # pixels; on larger images, text and lines grow along
_FONT = 13  # pixels
_TITLE = 15
_BANNER = 24
_GAP = 6
CELL = (360, 480)  # height and width of a grid's cell, in pixels
_TINT = 0.4  # opacity of masks
Colour = tuple[int, int, int]  # RGB
_Box = tuple[float, float, float, float]  # corners x1, y1, x2, y2


@dataclass
class Instances:
    """Predicted or annotated instances of an image.

    Attributes:
        boxes: ``(N, 4)``, corners x1, y1, x2, y2 in pixels.
        classes: N indices into the names of the classes.
        scores: N scores of predictions; None for ground truth.
        masks: ``(N, H, W)`` of the image's size, boolean; None without masks.
        crowds: which of N annotations are of crowds; None for none.
    """

    boxes: Tensor
    classes: Sequence[int]
    scores: Sequence[float] | None = None
    masks: Tensor | None = None
    crowds: Sequence[bool] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, chosen: Sequence[int]) -> Instances:
        """The instances with these indices, in their order."""
        index = torch.tensor(chosen, dtype=torch.long)
        return Instances(
            self.boxes[index],
            [self.classes[i] for i in chosen],
            None if self.scores is None else [self.scores[i] for i in chosen],
            None if self.masks is None else self.masks[index],
            None if self.crowds is None else [self.crowds[i] for i in chosen],
        )

    def of_classes(self, allowed: Collection[int]) -> Instances:
        """The instances of these classes."""
        return self.select([i for i, index in enumerate(self.classes) if index in allowed])

    def scored(self, lowest: float) -> Instances:
        """The instances with at least this score."""
        return self.select([i for i, score in enumerate(self.scores or ()) if score >= lowest])


def class_colours(names: Sequence[str]) -> list[Colour]:
    """One hue per class, as RGB; it depends on the set of names, not on their order.

    Examples:
        >>> class_colours(["dog", "cat"]) == class_colours(["cat", "dog"])[::-1]
        True
    """
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    # Steps of the golden ratio: neighbours differ, and no hue comes twice.
    rgb = [colorsys.hsv_to_rgb(places[name] * 0.618034 % 1, 0.85, 0.95) for name in names]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def draw_predictions(
    image: np.ndarray,
    predicted: Instances,
    names: Sequence[str],
    score_thresh: float = SCORE_THRESH,
    *,
    best: int = 0,
) -> np.ndarray:
    """Draw predictions, below a title that says how many there are.

    Args:
        image: RGB, ``(H, W, 3)``, 8 bits.
        predicted: with scores.
        names: of the classes.
        score_thresh: minimum score of instances to draw.
        best: number of instances to draw where none reaches ``score_thresh``. The title says so,
            or names the best where none is drawn.

    Returns:
        The picture, RGB.

    Examples:
        >>> found = Instances(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), [0], scores=[0.9])
        >>> draw_predictions(np.zeros((400, 500, 3), np.uint8), found, ["cat"]).shape
        (424, 500, 3)
    """
    scores = predicted.scores or []
    ranked = sorted(range(len(predicted)), key=lambda i: -scores[i])
    chosen = [i for i in ranked if scores[i] >= score_thresh]
    title = f"predicted, score >= {score_thresh:g}: {len(chosen)}"
    if not ranked:
        title = "predicted: nothing found"
    elif not chosen:
        chosen = ranked[:best]
        title = f"predicted: none with score >= {score_thresh:g}, "
        likeliest = _text(predicted, ranked[0], names)
        title += f"the best {len(chosen)} drawn" if best else f"best: {likeliest}"
    return _titled(_drawn(image, predicted.select(chosen), names), title)


def draw_truth(image: np.ndarray, truth: Instances | None, names: Sequence[str]) -> np.ndarray:
    """Draw the ground truth, below a title that says how many objects there are.

    Args:
        image: RGB, ``(H, W, 3)``, 8 bits.
        truth: None where it is not known.
        names: of the classes.

    Returns:
        The picture, RGB, of the size of :func:`draw_predictions`.

    Examples:
        >>> draw_truth(np.zeros((400, 500, 3), np.uint8), None, ["cat"]).shape
        (424, 500, 3)
    """
    if truth is None:
        nothing = Instances(torch.zeros(0, 4), [])
        return _titled(_drawn(image, nothing, names), "truth: not loaded")
    crowds = sum(truth.crowds or [])
    title = f"truth: {len(truth) - crowds or 'nothing'}"
    title += f" and {crowds} crowd" if crowds else ""
    return _titled(_drawn(image, truth, names), title)


def draw_pair(
    image: np.ndarray,
    predicted: Instances,
    truth: Instances | None,
    names: Sequence[str],
    score_thresh: float = SCORE_THRESH,
) -> np.ndarray:
    """Draw predictions (left) next to the ground truth (right), with titles.

    Where no prediction reaches ``score_thresh``, the three best are drawn, and the title says so.

    Args:
        image: RGB, ``(H, W, 3)``, 8 bits.
        predicted: with scores.
        truth: None where it is not known.
        names: of the classes.
        score_thresh: minimum score of instances to draw.

    Returns:
        The picture, RGB.

    Examples:
        >>> found = Instances(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), [0], scores=[0.9])
        >>> photograph = np.zeros((400, 500, 3), np.uint8)
        >>> draw_pair(photograph, found, None, ["cat"]).shape
        (424, 1006, 3)
    """
    left = draw_predictions(image, predicted, names, score_thresh, best=_BEST)
    right = draw_truth(image, truth, names)
    gap = np.full((len(left), _GAP, 3), 255, np.uint8)
    return np.hstack([left, gap, right])


def complete_names(names: Sequence[str] | None, number: int) -> list[str]:
    """The names of a detector's classes, or numbers if there are not as many names as classes.

    Examples:
        >>> complete_names(None, 2)
        ['class 0', 'class 1']
    """
    return list(names) if names and len(names) == number else [f"class {i}" for i in range(number)]


def draw_cell(
    image: np.ndarray,
    found: Instances,
    names: Sequence[str],
    title: str,
    size: tuple[int, int] = CELL,
) -> np.ndarray:
    """Draw instances on an image of any size, scaled to a cell of a grid, below a title.

    Args:
        image: RGB, ``(H, W, 3)``, 8 bits.
        found: what to draw.
        names: of the classes.
        title: cut where it is too long for the cell.
        size: height and width of the cell in pixels, without the title's banner.

    Returns:
        The cell, RGB; where the image is of another shape, the rest is white.

    Examples:
        >>> found = Instances(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), [0])
        >>> draw_cell(np.zeros((800, 1333, 3), np.uint8), found, ["cat"], "street").shape
        (384, 480, 3)
    """
    scale = min(room / side for room, side in zip(size, image.shape[:2]))
    cell = Image.new("RGB", size[::-1], "white")
    cell.paste(_drawn(image, found, names, scale))
    font = ImageFont.load_default(_TITLE)
    if font.getlength(title) > size[1] - 12:
        while title and font.getlength(f"{title}...") > size[1] - 12:
            title = title[:-1]
        title += "..."
    return _titled(cell, title)


def draw_grid(cells: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Lay out cells of one size row by row.

    Raises:
        ValueError: there are no cells.

    Examples:
        >>> draw_grid([np.zeros((384, 480, 3), np.uint8)] * 4).shape
        (774, 1452, 3)
    """
    if not cells:
        raise ValueError("there are no cells to lay out")
    height, width, _ = cells[0].shape
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    grid = np.full(size, 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = (index // columns) * (height + _GAP), (index % columns) * (width + _GAP)
        grid[top : top + height, left : left + width] = cell
    return grid


def _drawn(
    image: np.ndarray, found: Instances, names: Sequence[str], scale: float | None = None
) -> Image.Image:
    """The image with masks, boxes and labels of instances; large ones lie below small ones.

    Without a ``scale``, small images are enlarged.
    """
    if scale is None:
        scale = max(1.0, _MIN_SIDE / min(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height))
    sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    found = found.select(sizes.argsort(descending=True).tolist())
    if not len(found):
        return resized
    palette = class_colours(names)
    colours = [palette[index] for index in found.classes]
    canvas = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    if found.masks is not None:
        masks = F.interpolate(found.masks[None].float(), (height, width))[0] > 0.5
        for mask, colour in zip(masks, colours):  # one by one: where they overlap, both show
            canvas = draw_segmentation_masks(canvas, mask, _TINT, [colour])
    boxes = found.boxes.float() * scale
    boxes = torch.stack(
        [boxes[:, 0::2].clamp(0, width - 1), boxes[:, 1::2].clamp(0, height - 1)], 2
    ).flatten(1)
    line = round(2 * _zoom(resized))
    canvas = draw_bounding_boxes(canvas, boxes, colors=colours, width=line)
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    taken: list[_Box] = []
    for i, (box, colour) in enumerate(zip(boxes.tolist(), colours)):
        taken.append(_label(picture, box, _text(found, i, names), colour, taken))
    return picture


def _text(found: Instances, i: int, names: Sequence[str]) -> str:
    name = names[found.classes[i]]
    if found.scores is not None:
        name += f" {found.scores[i]:.2f}"
    return f"{name} (crowd)" if found.crowds is not None and found.crowds[i] else name


def _label(
    picture: Image.Image, box: Sequence[float], text: str, colour: Colour, taken: Sequence[_Box]
) -> _Box:
    """Write a label at a box, where it covers no other one if there is such a place; its place."""
    pad = round(2 * _zoom(picture))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT * _zoom(picture))
    width, height = (side + 2 * pad for side in draw.textbbox((0, 0), text, font)[2:])
    x = max(0.0, min(box[0], picture.width - width - 1))
    lowest = picture.height - height
    # Above the box, in it below its upper edge, below it, in it above its lower edge.
    places = (box[1] - height, box[1], box[3], box[3] - height)
    labels = [(x, y, x + width, y + height) for y in places if 0 <= y <= lowest]
    labels = labels or [(x, lowest, x + width, picture.height)]
    free = (label for label in labels if not any(_overlap(label, other) for other in taken))
    label = next(free, labels[0])
    draw.rectangle((label[0], label[1], label[2], label[3] - 1), fill=colour)
    bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128
    draw.text((x + pad, label[1] + pad / 2), text, "black" if bright else "white", font)
    return label


def _overlap(one: _Box, other: _Box) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def _zoom(picture: Image.Image) -> float:
    return max(1.0, min(picture.size) / _FULL_SIDE)


def _titled(picture: Image.Image, title: str) -> np.ndarray:
    """The picture below a white banner with its title, ``(H, W, 3)``."""
    zoom = _zoom(picture)
    banner = round(_BANNER * zoom)
    whole = Image.new("RGB", (picture.width, picture.height + banner), "white")
    whole.paste(picture, (0, banner))
    place = round(6 * zoom), round(3 * zoom)
    ImageDraw.Draw(whole).text(place, title, "black", ImageFont.load_default(_TITLE * zoom))
    return np.array(whole)
