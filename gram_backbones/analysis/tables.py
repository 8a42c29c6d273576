"""Tables as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import replacing


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys as a CSV file with a header, whole or not at all.

    Raises:
        OSError: it cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_csv(Path(folder, "a.csv"), [{"unit": 3, "iou": 0.5}])
        ...     Path(folder, "a.csv").read_text().split()
        ['unit,iou', '3,0.5']
    """
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
