"""``run.json``: what a run of either framework says about itself in its folder.

The frameworks' own files say neither where the data are nor what differs from the base config.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .atomic import replacing

FILE = "run.json"
_DISTRIBUTIONS = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class RunRecord:
    """A run: where it computes, on what data, from what config.

    Attributes:
        versions: by name.
        device: for instance ``"cpu"`` or ``"cuda"``.
        seed: None for none.
        weights: file or name of the weights that the run started from; empty for none.
        iterations, epochs: the length of the training; 0 where it is given by the other.
        datasets: what is evaluated: annotation file and image folder, by the data set's name.
        base: what ``changes`` is relative to.
        changes: values of the base and of the run, as text, by the keys of the config that differ.
        command: arguments that the process was started with.
    """

    versions: dict[str, str]
    device: str
    seed: int | None
    weights: str
    iterations: int = 0
    epochs: int = 0
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    base: str = ""
    changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))

    def write(self, folder: str | Path) -> None:
        """Write ``run.json`` into a folder.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(Path(folder, FILE)) as part:
            part.write_text(json.dumps(asdict(self), indent=1))


def read_run_record(folder: str | Path) -> RunRecord | None:
    """The record of a run's folder; None without one.

    Raises:
        ValueError: ``run.json`` is not such a record.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> record = RunRecord({"torch": "2.14.1"}, device="cpu", seed=0, weights="")
        >>> with TemporaryDirectory() as folder:
        ...     record.write(folder)
        ...     read_run_record(folder).versions
        {'torch': '2.14.1'}
    """
    file = Path(folder, FILE)
    if not file.is_file():
        return None
    try:
        return RunRecord(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not the record of a run: {error}") from error


def installed_versions(**more: str) -> dict[str, str]:
    """Versions of Python and of what every run computes with, and those given."""
    found = {"Python": platform.python_version(), **more}
    return found | {name: metadata.version(name) for name in _DISTRIBUTIONS}


def config_changes(
    base: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Values that differ between two nested configs, by dotted keys; a dash where there is none.

    Examples:
        >>> config_changes({"SOLVER": {"BASE_LR": 0.02}, "SEED": 0}, {"SOLVER": {"BASE_LR": 0.04}})
        {'SEED': ('0', '–'), 'SOLVER.BASE_LR': ('0.02', '0.04')}
    """
    old, new = _flat(base), _flat(config)
    pairs = {key: (old.get(key, "–"), new.get(key, "–")) for key in sorted({*old, *new})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(node: Any, path: str = "") -> dict[str, str]:
    if isinstance(node, Mapping):
        parts = (_flat(value, f"{path}.{key}" if path else str(key)) for key, value in node.items())
        return {key: value for part in parts for key, value in part.items()}
    # Frameworks turn tuples into lists when they write and read configs.
    return {path: str([*node] if isinstance(node, (list, tuple)) else node) or "''"}
