"""What is in a data set: classes, sizes of objects, crowds, pictures without annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..atomic import replacing
from .annotations import ANNOTATION, CATEGORY, IMAGE, usable
from .reading import Dataset, load_json

# COCO's sizes, by area in pixels: below 32² is small, from 96² on large.
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
_SHOWN = 20  # classes in the text and the plot


@dataclass(frozen=True)
class Statistics:
    """Numbers of a data set. Entries that the frameworks cannot use are left out.

    Attributes:
        name: of the data set.
        shapes: height and width of every picture, in pixels.
        annotated: number of pictures with annotations.
        crowds: number of crowd annotations, which the other numbers leave out.
        areas: area of every object, in pixels, by class; classes in the order of their ids.
        pictures: in how many pictures every class is.
    """

    name: str
    shapes: tuple[tuple[float, float], ...]
    annotated: int
    crowds: int
    areas: dict[str, tuple[float, ...]]
    pictures: dict[str, int]

    def sizes(self, name: str | None = None) -> dict[str, int]:
        """Number of small, medium and large objects, of one class or all.

        Examples:
            >>> areas = {"cat": (100.0, 2000.0, 3000.0), "dog": ()}
            >>> Statistics("pets", ((8, 8),), 1, 0, areas, {"cat": 1, "dog": 0}).sizes()
            {'small': 1, 'medium': 2, 'large': 0}
        """
        chosen = self.areas.values() if name is None else [self.areas[name]]
        counts = Counter(size_of(area) for areas in chosen for area in areas)
        return {size: counts[size] for size in SIZES}

    def by_frequency(self) -> list[str]:
        """The classes, those with the most objects first."""
        return sorted(self.areas, key=lambda name: -len(self.areas[name]))

    def text(self) -> str:
        """A summary, and a table of the most frequent classes."""
        objects = sum(map(len, self.areas.values()))
        ranked = self.by_frequency()
        empty = [name for name in ranked if not self.areas[name]]
        bare = len(self.shapes) - self.annotated
        shares = [f"{n} {size} ({n / max(objects, 1):.0%})" for size, n in self.sizes().items()]
        lines = [
            f"{self.name}: {len(self.shapes)} pictures, {bare} without annotations; {objects} "
            f"objects of {len(ranked)} classes, {self.crowds} crowds",
            f"sizes: {', '.join(shares)}",
        ]
        if self.shapes:
            heights, widths = zip(*self.shapes)
            lines.append(f"pictures: heights {_range(heights)}, widths {_range(widths)} pixels")
        if self.annotated:
            lines.append(f"objects in a picture with annotations: {objects / self.annotated:.1f}")
        width = max([5, *(len(name) for name in ranked[:_SHOWN])])
        lines.append(f"{'class':{width}}  objects  pictures  " + "  ".join(SIZES))
        for name in ranked[:_SHOWN]:
            counts = self.sizes(name)
            lines.append(
                f"{name:{width}}  {len(self.areas[name]):7}  {self.pictures[name]:8}  "
                + "  ".join(f"{n:{len(size)}}" for size, n in counts.items())
            )
        if len(ranked) > _SHOWN:
            lines.append(f"and {len(ranked) - _SHOWN} more classes")
        if empty:
            named = ", ".join(empty[:_SHOWN]) + (", …" if len(empty) > _SHOWN else "")
            lines.append(f"{len(empty)} classes without objects: {named}")
        return "\n".join(lines)

    def draw(self, file: str | Path) -> None:
        """Plot the objects of the most frequent classes by size, and all objects' sizes.

        Args:
            file: picture to write; its ending says the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a plot needs pip install gram-backbones[analysis]") from error
        names = self.by_frequency()[:_SHOWN]
        height = 2.2 + 0.22 * len(names)
        figure = Figure(figsize=(10, max(3.4, height)), layout="constrained")
        classes, sides = figure.subplots(1, 2)
        left = [0] * len(names)
        for size, colour in zip(SIZES, ("#9ecae1", "#4292c6", "#08519c")):
            counts = [self.sizes(name)[size] for name in names]
            classes.barh(names, counts, left=left, label=size, color=colour)
            left = [a + b for a, b in zip(left, counts)]
        classes.invert_yaxis()
        shown = f"the {len(names)} most frequent of " if len(names) < len(self.areas) else ""
        classes.set(xlabel="objects", title=f"{self.name}: {shown}{len(self.areas)} classes")
        figure.legend(loc="outside upper left", ncols=3)
        found = [area**0.5 for areas in self.areas.values() for area in areas]
        sides.hist(found, bins=40, color="#4292c6")
        for limit in (32, 96):
            sides.axvline(limit, color="black", linestyle="--", linewidth=1)
        sides.set(xlabel="√area of an object, pixels; dashed: COCO's 32 and 96", ylabel="objects")
        with replacing(file) as part:
            figure.savefig(part, format=Path(file).suffix[1:], dpi=90)


def size_of(area: float) -> str:
    """COCO's size of an object by its area in pixels.

    Examples:
        >>> size_of(1023), size_of(1024), size_of(96 * 96)
        ('small', 'medium', 'large')
    """
    return next(size for size, limit in SIZES.items() if area < limit)


def gather_statistics(dataset: Dataset) -> Statistics:
    """Read the annotations of a data set; its pictures are not opened.

    Raises:
        DataError: the file is no COCO JSON.
        OSError: the file cannot be read.

    Examples:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> from gram_backbones.data import read_dataset
        >>> content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 60}]}
        >>> content |= {"categories": [{"id": 7, "name": "dog"}], "annotations": [
        ...     dict(id=1, image_id=1, category_id=7, bbox=[0, 0, 40, 50], area=2000, iscrowd=0)
        ... ]}
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.json").write_text(json.dumps(content))
        ...     found = gather_statistics(read_dataset(f"pets={folder}/train.json:{folder}"))
        >>> found.sizes(), found.shapes
        ({'small': 0, 'medium': 1, 'large': 0}, ((60, 80),))
    """
    content = load_json(dataset.json_file)
    images = usable(content["images"], IMAGE)
    annotations = usable(content["annotations"], ANNOTATION)
    categories = usable(content["categories"], CATEGORY)
    names = {category["id"]: category["name"] for category in categories}
    known = {image["id"] for image in images}
    found = [a for a in annotations if a["image_id"] in known and a["category_id"] in names]
    objects = [annotation for annotation in found if not annotation["iscrowd"]]
    areas: dict[str, list[float]] = {name: [] for _, name in sorted(names.items())}
    seen: dict[str, set] = {name: set() for name in areas}
    for annotation in objects:
        name = names[annotation["category_id"]]
        areas[name].append(annotation["area"])
        seen[name].add(annotation["image_id"])
    return Statistics(
        dataset.name,
        tuple((image["height"], image["width"]) for image in images),
        len({annotation["image_id"] for annotation in found}),
        len(found) - len(objects),
        {name: tuple(values) for name, values in areas.items()},
        {name: len(pictures) for name, pictures in seen.items()},
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):g} to {max(values):g} (median {median(values):g})"
