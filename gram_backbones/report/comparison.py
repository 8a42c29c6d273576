"""A table of detectors that differ in their backbone: AP over seeds, size, cost and speed.

Reads the folders of `tools/compare_backbones.sh`: ``ROW-seedN``, each a run of Detectron2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import mean, median, stdev

from ..atomic import replacing
from .runs import read_run

COMPLETE = "complete"  # an empty file in the folder of a run that has ended
SPEED = "speed.json"  # in the folder that was measured
_WARM_UP = 3  # calls that are not timed
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
        seconds_per_iteration, seconds_per_image: of training and inference, by `measure_speed`;
            None if not measured.
    """

    name: str
    seeds: Sequence[int]
    box_ap: Sequence[float]
    mask_ap: Sequence[float]
    parameters: int
    gflops: float
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
    """The rows of a folder. Builds each detector once, to count; takes Detectron2.

    Raises:
        ValueError: see `complete_runs`; or a run has no AP.
    """
    return [_read_row(name, runs) for name, runs in complete_runs(folder).items()]


def to_markdown(rows: Iterable[Row]) -> str:
    """A Markdown table: means over seeds, with the standard deviation where there are several.

    Examples:
        >>> row = Row("resnet18", [0, 1], [20.0, 22.0], [18.0, 19.0], 14_000_000, 1.2)
        >>> print(to_markdown([row]).splitlines()[-1])
        | resnet18 | 2 | 21.0 ± 1.4 | 18.5 ± 0.7 | 14,000,000 | 1.200 | – | – |
    """
    lines = [_HEADS, ["---", *["---:"] * (len(_HEADS) - 1)]]
    for row in rows:
        seconds = [row.seconds_per_iteration, row.seconds_per_image]
        lines.append(
            [
                row.name,
                str(len(row.seeds)),
                _mean_and_spread(row.box_ap),
                _mean_and_spread(row.mask_ap),
                f"{row.parameters:,}",
                f"{row.gflops:.3f}",
                *("–" if value is None else f"{value:.3f}" for value in seconds),
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


def measure_speed(run: str | Path, iterations: int = 12, images: int = 24) -> dict[str, float]:
    """Time training and inference of a complete run, and write ``speed.json`` into its folder.

    Both begin with the run's final weights and a few calls that do not count. Figures are
    comparable only if the machine does nothing else.

    Args:
        run: folder of a run.
        iterations: of training, with the run's batch size and with loading the images.
        images: of the test set, one at a time, without loading them.

    Returns:
        The medians, ``seconds_per_iteration`` and ``seconds_per_image``.
    """
    import torch
    from detectron2.engine import SimpleTrainer
    from detectron2.utils.events import EventStorage

    from ..d2 import GramCheckpointer, GramTrainer

    run = Path(run)
    cfg = _read_config(run)
    model = GramTrainer.build_model(cfg)
    GramCheckpointer(model, heads="exact").load(str(run / "model_final.pth"))
    trainer = SimpleTrainer(
        model, GramTrainer.build_train_loader(cfg), GramTrainer.build_optimizer(cfg, model)
    )
    trainer.iter = 0
    test = iter(GramTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    batches = list(islice(test, _WARM_UP + images))
    model.eval()
    with torch.no_grad():
        per_image = [_seconds(partial(model, batch)) for batch in batches]
    model.train()
    with EventStorage() as trainer.storage:
        per_iteration = [_seconds(trainer.run_step) for _ in range(_WARM_UP + iterations)]
    speed = {
        "seconds_per_iteration": median(per_iteration[_WARM_UP:]),
        "seconds_per_image": median(per_image[_WARM_UP:]),
    }
    with replacing(run / SPEED) as part:
        part.write_text(json.dumps(speed) + "\n")
    return speed


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read_row(name: str, runs: dict[int, Path]) -> Row:
    from ..d2 import GramTrainer
    from ..flops import count_conv_flops, count_parameters

    found = {run: read_run(run).precisions for run in runs.values()}
    for run, kind in product(found, _AP):
        if kind not in found[run]:
            raise ValueError(f"{run} has no {kind}: it has not been evaluated")
    cfg = _read_config(next(iter(runs.values())))
    model = GramTrainer.build_model(cfg)
    flops = count_conv_flops(model.backbone, cfg.INPUT.MIN_SIZE_TEST)
    speeds = [json.loads(file.read_text()) for run in runs.values() for file in run.glob(SPEED)]
    return Row(
        name,
        [*runs],
        *([ap[kind] for ap in found.values()] for kind in _AP),
        count_parameters(model),
        flops / 1e9,
        **(speeds[0] if speeds else {}),
    )


def _read_config(run: Path):
    """The config of a run of Detectron2."""
    from detectron2.config import get_cfg

    from ..d2 import add_gram_backbones_config

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(str(run / "config.yaml"))
    return cfg


def _check_same_schedule(runs: Sequence[Path]) -> None:
    import yaml

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
