"""Memory, open files and threads of a long training: ``bash tools/test.sh --reliability``.

A tiny detector is trained on images of 64 pixels and evaluated every 100 iterations, in a process
for each framework. What it takes at the end is compared with what it took after 500 iterations.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from .check_mmdet_configs import CONFIG

SETTLED = 500  # iterations after which nothing should grow
EVERY = 100  # iterations between evaluations, each followed by a sample
GROWTH = 1.02  # of the memory
ENGINES = ("detectron2", "mmdetection")
SMALL = (
    "MODEL.AOGNET.CHANNELS [8,16,24,32,48] MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 10 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 "
    "SOLVER.IMS_PER_BATCH 1 SOLVER.STEPS () SOLVER.BASE_LR 0.0001 DATALOADER.NUM_WORKERS 0 "
    "DATASETS.TRAIN ('long',) DATASETS.TEST ('long',) TEST.PICTURES.NUM 1"
).split()
EVALUATE = """
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters={count}, val_interval={every})
val_cfg = dict(type="ValLoop")
# At the end of a pass through the data, MMEngine sleeps for 2 s.
train_dataloader["sampler"] = dict(type="InfiniteSampler")
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[*pipeline[:-1], dict(type="PackDetInputs", meta_keys=keys)], **classes),
)
val_evaluator = dict(ann_file=data_root + "train.json")
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000, max_keep_ckpts=2))
optim_wrapper = dict(optimizer=dict(lr=0.0001))
# oneDNN keeps kernels for every number of objects that the mask head has seen, up to 100.
model["test_cfg"] = dict(rpn=dict(max_per_img=10), rcnn=dict(max_per_img=10))
"""


class Sample(NamedTuple):
    """What a process takes after some iterations: MB of memory, open files, threads."""

    iterations: int
    memory: float
    files: int
    threads: int


class Samples(list):
    """Samples of this process, taken by calls with the number of iterations."""

    def __init__(self) -> None:
        self.output = sys.stdout  # of the trainings nothing is printed

    def __call__(self, iterations: int) -> None:
        """Take a sample, and print it now and then."""
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what is free does not count
        process = psutil.Process()
        memory = process.memory_info().rss / 2**20
        self.append(Sample(iterations, memory, process.num_fds(), process.num_threads()))
        if iterations % 500 == 0 or iterations < 500:
            print(
                f"{iterations:6} iterations: {memory:.1f} MB, {self[-1].files} files, "
                f"{self[-1].threads} threads",
                file=self.output,
                flush=True,
            )


def train_detectron2(folder: Path, count: int, every: int, sample: Callable[[int], None]) -> None:
    """Train a tiny Mask R-CNN, with a sample after every evaluation."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import hooks

    from gram_backbones.cli import d2
    from gram_backbones.d2 import GramTrainer
    from gram_backbones.d2.demo_dataset import make_demo_dataset

    files = make_demo_dataset(folder, train=4, val=0)
    register_coco_instances("long", {}, str(files["train"]), str(folder / "train"))
    length = ["SOLVER.MAX_ITER", count, "TEST.EVAL_PERIOD", every, "OUTPUT_DIR", folder / "out"]
    length += ["SOLVER.CHECKPOINT_PERIOD", 1000]
    arguments = ["--config", "demo_mask_rcnn_aognet4m_fpn", *SMALL, *map(str, length)]
    trainer = GramTrainer(d2.load_config(d2.parse_args(arguments)))

    def after_step() -> None:
        if (trainer.iter + 1) % every == 0:
            sample(trainer.iter + 1)

    trainer.register_hooks([hooks.CallbackHook(after_step=lambda _: after_step())])
    try:
        trainer.train()
    finally:
        DatasetCatalog.remove("long")
        MetadataCatalog.remove("long")


def train_mmdetection(folder: Path, count: int, every: int, sample: Callable[[int], None]) -> None:
    """Train a tiny Mask R-CNN, with a sample before every evaluation."""
    from mmengine.hooks import Hook

    from gram_backbones.cli import mmdet
    from gram_backbones.config_folders import find_config
    from gram_backbones.d2.demo_dataset import CLASSES, make_demo_dataset
    from gram_backbones.mmdet import GramRunner

    class SampleHook(Hook):
        def after_train_iter(self, runner, batch_idx, *args, **kwargs):
            if (runner.iter + 1) % every == 0:
                sample(runner.iter + 1)

    make_demo_dataset(folder, train=4, val=0)
    base = str(find_config("mask-rcnn_aognet-12m_fpn_1x_coco", ["mmdet"]))
    config = CONFIG.format(base=base, root=str(folder), classes=CLASSES)
    config = config.replace("(96, 96)", "(64, 64)")
    lines = [line for line in config.splitlines() if not line.startswith("val_dataloader = ")]
    file = folder / "long.py"
    file.write_text("\n".join(lines) + EVALUATE.format(count=count, every=every))
    arguments = [str(file), "--work-dir", str(folder / "out"), "--pictures", "1"]
    runner = GramRunner.from_cfg(
        mmdet._prepare_training(mmdet.train_parser().parse_args(arguments))
    )
    runner.register_hook(SampleHook())
    runner.train()


def check(engine: str, count: int) -> tuple[Samples, list[str]]:
    """Train for some iterations; the samples, and what has grown."""
    samples = Samples()
    train = train_detectron2 if engine == "detectron2" else train_mmdetection
    with TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        with redirect_stdout(nothing), redirect_stderr(nothing):
            train(Path(folder), count, min(EVERY, max(1, count // 4)), samples)
    settled = min(SETTLED, count // 2)
    first, last = [s for s in samples if s.iterations <= settled][-1], samples[-1]
    grown = [
        f"{name}: {getattr(first, name)} to {getattr(last, name)}"
        for name, growth in (("memory", GROWTH), ("files", 1), ("threads", 1))
        if getattr(last, name) > growth * getattr(first, name)
    ]
    return samples, grown


def main() -> int:
    """Train, and print what has grown; without ``--engine`` each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="iterations; default: 20000")
    parser.add_argument("--seed", type=int, help="ignored: nothing is drawn")
    parser.add_argument("--engine", choices=ENGINES)
    args = parser.parse_args()
    if not args.engine:
        this = [sys.executable, "-W", "ignore", "-m", "tests.reliability.check_long_runs"]
        options = ["--count", str(args.count), "--engine"]
        codes = [subprocess.run([*this, *options, engine]).returncode for engine in ENGINES]
        return int(any(codes))  # of a killed process it is negative
    start = time.monotonic()
    samples, grown = check(args.engine, args.count)
    minutes = (time.monotonic() - start) / 60
    print(
        f"{args.engine}: {samples[-1].iterations} iterations and {len(samples)} evaluations in "
        f"{minutes:.1f} min; grown: {', '.join(grown) or 'nothing'}"
    )
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
