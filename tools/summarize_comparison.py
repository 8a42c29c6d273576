#!/usr/bin/env python
"""Describe the complete runs of tools/compare_backbones.sh: a table and learning curves.

tools/summarize_comparison.py work_dirs/compare
tools/summarize_comparison.py work_dirs/compare --speed     times every backbone first: keep quiet

Writes comparison.md, comparison.json and curves.png into the folder, and prints the table.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

from gram_backbones.report.comparison import complete_runs, note_cost, read_rows, write_table
from gram_backbones.report.curves import draw_curves, read_curves

WARM_UP = 3  # calls that are not timed


def read_config(run: Path):
    from detectron2.config import get_cfg

    from gram_backbones.d2 import add_gram_backbones_config

    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(str(run / "config.yaml"))
    return cfg


def count(run: Path) -> None:
    """Note the detector's parameters, and the FLOPs of backbone and FPN for a test image."""
    from gram_backbones.d2 import GramTrainer
    from gram_backbones.flops import count_conv_flops, count_parameters

    cfg = read_config(run)
    model = GramTrainer.build_model(cfg)
    flops = count_conv_flops(model.backbone, cfg.INPUT.MIN_SIZE_TEST)
    note_cost(run, parameters=count_parameters(model), gflops=flops / 1e9)


def measure_speed(run: Path, iterations: int = 12, images: int = 24) -> None:
    """Note the median seconds of a training iteration, and of inference with one test image.

    Both begin with the run's final weights. An iteration includes loading its images, inference
    does not. Figures are comparable only if the machine does nothing else.
    """
    import torch
    from detectron2.engine import SimpleTrainer
    from detectron2.utils.events import EventStorage

    from gram_backbones.d2 import GramCheckpointer, GramTrainer

    cfg = read_config(run)
    model = GramTrainer.build_model(cfg)
    GramCheckpointer(model, heads="exact").load(str(run / "model_final.pth"))
    trainer = SimpleTrainer(
        model, GramTrainer.build_train_loader(cfg), GramTrainer.build_optimizer(cfg, model)
    )
    trainer.iter = 0
    test = iter(GramTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    batches = list(islice(test, WARM_UP + images))
    model.eval()
    with torch.no_grad():
        per_image = [seconds(partial(model, batch)) for batch in batches]
    model.train()
    with EventStorage() as trainer.storage:
        per_iteration = [seconds(trainer.run_step) for _ in range(WARM_UP + iterations)]
    note_cost(
        run,
        seconds_per_iteration=median(per_iteration[WARM_UP:]),
        seconds_per_image=median(per_image[WARM_UP:]),
    )


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="OUTPUT of tools/compare_backbones.sh")
    parser.add_argument(
        "--speed", action="store_true", help="time training and inference of every backbone, again"
    )
    args = parser.parse_args()
    os.environ["DETECTRON2_DATASETS"] = str(args.folder / "datasets")
    try:
        runs = complete_runs(args.folder)
        for row in read_rows(args.folder):
            first = runs[row.name][row.seeds[0]]
            if row.parameters is None:
                count(first)
            if args.speed:
                measure_speed(first)
        print(write_table(args.folder), end="")
        curves = [read_curves(run) for seeds in runs.values() for run in seeds.values()]
        draw_curves(curves, args.folder / "curves.png", ["bbox/AP", "total_loss"])
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
