"""The files that the connectivity of a data set is written to, while it is looked at."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np

from ..atomic import replacing
from ..data import read_picture
from .connectivity import EdgeStatistics, Observation, SkipStatistics
from .connectivity_figures import draw_categories, draw_graphs, draw_matrices, draw_skipped
from .figures import save
from .pictures import Picture
from .tables import write_csv


class ConnectivityWriter:
    """A context that takes observations of images, and writes figures and numbers at its end.

    ``images.csv`` grows image by image, and appears with the other files. After an error nothing is
    left.

    Args:
        folder: where to write; it is made.
        stages: labels of the stages.
        categories: names.
        graphs: of how many images to draw graphs, from the first on.

    Raises:
        OSError: the folder cannot be written to.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> matrix = np.tril(np.full((3, 3), 0.5), -1)
        >>> from gram_backbones.analysis.connectivity import Skipped
        >>> skipped = Skipped(None, 3, 0, 1, 0, 1000, 0)
        >>> with TemporaryDirectory() as folder:
        ...     with ConnectivityWriter(folder, ["res2"], graphs=0) as writer:
        ...         writer.add(Picture(Path("cat.jpg")), Observation({"res2": matrix}, (skipped,)))
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['edges.csv', 'images.csv', 'mean.png', 'skipped.csv', 'skipped.png', 'statistics.npz', ...]
    """

    def __init__(
        self,
        folder: str | Path,
        stages: Sequence[str],
        categories: Sequence[str] = (),
        graphs: int = 4,
    ):
        self.folder = Path(folder)
        self.categories = tuple(categories)
        self.edges = {stage: EdgeStatistics(categories) for stage in stages}
        self.skipped = SkipStatistics()
        self.graphs = graphs
        self._first: list[tuple[Picture, Observation]] = []

    def __enter__(self) -> ConnectivityWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        part = self._stack.enter_context(replacing(self.folder / "images.csv"))
        self._rows = csv.writer(self._stack.enter_context(part.open("w", newline="")))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            self._stack.__exit__(kind, error, at)
            if kind is not None:
                with suppress(OSError):  # others' files may be in it
                    self.folder.rmdir()

    def add(self, picture: Picture, seen: Observation) -> None:
        """Count an image in, and write its rows."""
        for stage, matrix in seen.matrices.items():
            self.edges[stage].add(matrix, picture.categories)
        if not self.skipped.images:
            self._rows.writerow(["image", "categories", *asdict(seen.skipped[0])])
        if self.skipped.images < self.graphs:
            self._first.append((picture, seen))
        self.skipped.add(seen.skipped)
        names = " ".join(self.categories[index] for index in picture.categories)
        for row in seen.skipped:
            values = asdict(row)
            values["threshold"] = "learned" if row.threshold is None else row.threshold
            self._rows.writerow([picture.path, names, *values.values()])

    def table(self) -> str:
        """What was skipped on average, in Markdown."""
        lines = [
            "| threshold | edges closed | blocks skipped | FLOPs skipped: mean, least, most |",
            "|---|---:|---:|---:|",
        ]
        for row in self.skipped.rows():
            shares = [f"{row[f'{name}_flops_skipped']:.1%}" for name in ("mean", "least", "most")]
            lines.append(
                f"| {row['threshold']} | {row['mean_edges_closed']:.1f} of {row['edges']} | "
                f"{row['mean_blocks_skipped']:.1f} of {row['blocks']} | {', '.join(shares)} |"
            )
        return "\n".join(lines)

    def _write(self) -> None:
        number = self.skipped.images
        of = f"over {number} image{'s' if number > 1 else ''}"
        mean = {stage: edges.mean[0] for stage, edges in self.edges.items()}
        std = {stage: edges.std[0] for stage, edges in self.edges.items()}
        save(draw_matrices(mean, f"mean weight of every edge {of}", 1), self.folder / "mean.png")
        title = f"standard deviation of every edge's weight {of}"
        save(draw_matrices(std, title), self.folder / "std.png")
        for i, (picture, seen) in enumerate(self._first, 1):
            figure = draw_graphs(read_picture(picture.path), seen.matrices, picture.path.name)
            save(figure, self.folder / f"graph-{i}-{picture.path.stem}.png")
        save(draw_skipped(self.skipped), self.folder / "skipped.png")
        for stage, edges in self.edges.items():
            if edges.count[1:].any():
                save(draw_categories(edges, stage), self.folder / f"categories-{stage}.png")
        rows = [{"stage": s, **row} for s, edges in self.edges.items() for row in edges.rows()]
        write_csv(self.folder / "edges.csv", rows)
        write_csv(self.folder / "skipped.csv", self.skipped.rows())
        self._write_arrays()

    def _write_arrays(self) -> None:
        names = ("count", "mean", "std", "is_open", "histogram")
        arrays = {
            f"{stage}/{name}": getattr(edges, name)
            for stage, edges in self.edges.items()
            for name in names
        }
        with replacing(self.folder / "statistics.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, categories=np.array(["", *self.categories]), **arrays)
