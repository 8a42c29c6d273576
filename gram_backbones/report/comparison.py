"""A table of detectors that differ in their backbone: AP over seeds, size, cost and speed.

Reads the folders of `tools/compare_backbones.sh`: ``ROW-seedN``, each a run of Detectron2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from ..atomic import replacing
from .runs import read_run

COMPLETE = "complete"  # an empty file in the folder of a run that has ended
COST = "cost.json"  # in a run's folder: what was counted and timed
_AP = ("bbox/AP", "segm/AP")
_SAME = ("SOLVER", "INPUT", "DATASETS")  # parts of the config that must not differ
_HEADS = ("backbone", "seeds", "box AP", "mask AP", "parameters", "conv GFLOPs")
_HEADS += ("s per training iteration", "s per image")


@dataclass(frozen=True)
class Row:
    """What is known of one backbone.

    Attributes:
        name: of the row.
        seeds: of the complete runs.
        box_ap, mask_ap: COCO's AP of each seed after the last iteration, in percent.
        parameters: of the whole detector.
        gflops: multiply-adds of the convolutions of backbone and FPN for one test image, in 10⁹.
        seconds_per_iteration, seconds_per_image: of training, and of inference with one image.

    Sizes, FLOPs and seconds are None where nobody has measured them.
    """

    name: str
    seeds: Sequence[int]
    box_ap: Sequence[float]
    mask_ap: Sequence[float]
    parameters: int | None = None
    gflops: float | None = None
    seconds_per_iteration: float | None = None
    seconds_per_image: float | None = None


def complete_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Folders of the complete runs by row and seed, both sorted.

    Raises:
        ValueError: the folder has no complete run, or runs whose schedules differ.
    """
    runs: dict[str, dict[int, Path]] = {}
    for stamp in Path(folder).glob(f"*-seed*/{COMPLETE}"):
        name, _, seed = stamp.parent.name.rpartition("-seed")
        runs.setdefault(name, {})[int(seed)] = stamp.parent
    if not runs:
        raise ValueError(f"{folder} holds no complete run: there is no ROW-seedN/{COMPLETE}")
    _check_same_schedule([run for found in runs.values() for run in found.values()])
    return {name: dict(sorted(found.items())) for name, found in sorted(runs.items())}


def read_rows(folder: str | Path) -> list[Row]:
    """The rows of a folder, with what `note_cost` wrote of any of their runs.

    Raises:
        ValueError: see `complete_runs`; or a run has no AP.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     run = Path(folder, "resnet18-seed0")
        ...     run.mkdir()
        ...     _ = (run / "config.yaml").write_text("{SOLVER: {}, INPUT: {}, DATASETS: {}}")
        ...     line = '{"iteration": 9, "bbox/AP": 20, "segm/AP": 18}'
        ...     _ = (run / "metrics.json").write_text(line)
        ...     (run / "complete").touch()
        ...     note_cost(run, parameters=14_000_000)
        ...     (row,) = read_rows(folder)
        >>> row.name, row.seeds, row.box_ap, row.mask_ap, row.parameters
        ('resnet18', [0], [20.0], [18.0], 14000000)
    """
    return [_read_row(name, runs) for name, runs in complete_runs(folder).items()]


def note_cost(run: str | Path, **values: float) -> None:
    """Add what was counted or timed to ``cost.json`` in a run's folder.

    Args:
        run: the folder.
        values: by the names of `Row`'s attributes.
    """
    file = Path(run, COST)
    known = json.loads(file.read_text()) if file.is_file() else {}
    with replacing(file) as part:
        part.write_text(json.dumps({**known, **values}, indent=1) + "\n")


def to_markdown(rows: Iterable[Row]) -> str:
    """A Markdown table: means over seeds, with the standard deviation where there are several.

    Examples:
        >>> row = Row("resnet18", [0, 1], [20.0, 22.0], [18.0, 19.0], 14_000_000, 1.2)
        >>> print(to_markdown([row]).splitlines()[-1])
        | resnet18 | 2 | 21.0 ± 1.4 | 18.5 ± 0.7 | 14,000,000 | 1.200 | – | – |
    """
    lines = [_HEADS, ["---", *["---:"] * (len(_HEADS) - 1)]]
    for row in rows:
        lines.append(
            [
                row.name,
                str(len(row.seeds)),
                _mean_and_spread(row.box_ap),
                _mean_and_spread(row.mask_ap),
                _formatted(row.parameters, ","),
                _formatted(row.gflops, ".3f"),
                _formatted(row.seconds_per_iteration, ".3f"),
                _formatted(row.seconds_per_image, ".3f"),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(folder: str | Path) -> str:
    """Write ``comparison.md`` and ``comparison.json`` into the folder; returns the former's text.

    The JSON is a list of `Row`s.

    Raises:
        ValueError: see `read_rows`.
    """
    rows = read_rows(folder)
    table = to_markdown(rows)
    content = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    for name, text in (("comparison.md", table), ("comparison.json", content)):
        with replacing(Path(folder, name)) as part:
            part.write_text(text)
    return table


def _read_row(name: str, runs: dict[int, Path]) -> Row:
    found = {run: read_run(run).precisions for run in runs.values()}
    for run, kind in product(found, _AP):
        if kind not in found[run]:
            raise ValueError(f"{run} has no {kind}: it has not been evaluated")
    box, mask = ([ap[kind] for ap in found.values()] for kind in _AP)
    costs = [json.loads(file.read_text()) for run in found for file in run.glob(COST)]
    merged = {key: value for cost in costs for key, value in cost.items()}
    return Row(name, [*runs], box, mask, **merged)


def _check_same_schedule(runs: Sequence[Path]) -> None:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "configs are compared by PyYAML, which is not installed: "
            "pip install gram-backbones[analysis]"
        ) from error

    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    for run, config in zip(runs, configs):
        for part in _SAME:
            for key, value in configs[0][part].items():
                if config[part][key] != value:
                    raise ValueError(
                        f"{part}.{key} is {config[part][key]!r} in {run} and {value!r} in "
                        f"{runs[0]}; compared runs need the same schedule and data"
                    )


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _formatted(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
