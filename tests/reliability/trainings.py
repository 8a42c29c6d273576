"""Tiny trainings by the command line, each a process of its own that can be killed.

Processes are forked from one that has imported the frameworks: a start takes no time then.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from itertools import product
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from gram_backbones import cli
from gram_backbones.classification.checkpoint import LAST, PREVIOUS
from gram_backbones.d2.demo_dataset import make_demo_dataset
from gram_backbones.weights.checkpoints import SavedCheckpoints
from gram_backbones.weights.pickled import read_checkpoint

ITERATIONS, PERIOD = 6, 2
_D2 = f"""
MODEL.AOGNET.VARIANT aognet_4m MODEL.AOGNET.CHANNELS [8,16,24,32,48] MODEL.DEVICE cpu
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.BACKBONE.FREEZE_AT 0 MODEL.AOGNET.NORM BN
INPUT.MIN_SIZE_TRAIN (64,) SOLVER.IMS_PER_BATCH 1 SOLVER.STEPS () SOLVER.BASE_LR 0.001
SOLVER.MAX_ITER {ITERATIONS} SOLVER.CHECKPOINT_PERIOD {PERIOD} DATALOADER.NUM_WORKERS 0
""".split()


class Tool(NamedTuple):
    """A command that trains.

    Attributes:
        name: for the report.
        command: its arguments before ``--resume``.
        options: those after it; the output folder comes last.
        end: name of the last checkpoint.
        state: what of its content shall be equal: weights, momenta, numbers.
        checkpoints: the files of a folder from which a run is resumed, the newest first.
    """

    name: str
    command: list[str]
    options: list[str]
    end: str
    state: Callable[[dict[str, Any]], Any]
    checkpoints: Callable[[Path], list[Path]] = lambda output: SavedCheckpoints(output).files()

    def end_of(self, output: Path) -> Any:
        """The state in which a run ended."""
        return self.state(read_whole(output / self.end))


def read_whole(file: Path) -> dict[str, Any]:
    """A checkpoint of any tool; raises if a byte of it has changed."""
    from gram_backbones.mmdet.checkpoints import _FINISHERS

    return read_checkpoint(file, finishers=_FINISHERS)


def equal(one: Any, other: Any) -> bool:
    """Whether nested containers hold the same tensors and values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def detectron2(folder: Path) -> Tool:
    """A Mask R-CNN of Detectron2 with an AOGNet of few channels."""
    from gram_backbones.d2 import GramTrainer  # noqa: F401  imported before processes are forked

    data = f"tiny={folder}/train.json:{folder}/train/"
    command = ["train", "demo_mask_rcnn_aognet4m_fpn", "--dataset", data]
    state = itemgetter("model", "trainer")
    return Tool("Detectron2", command, [*_D2, "OUTPUT_DIR"], "model_final.pth", state)


def mmdetection(folder: Path) -> Tool:
    """A Mask R-CNN of MMDetection."""
    from gram_backbones.config_folders import find_config
    from gram_backbones.d2.demo_dataset import CLASSES
    from gram_backbones.mmdet import GramRunner  # noqa: F401

    from .check_mmdet_configs import CONFIG

    file = folder / "tiny.py"
    base = str(find_config("mask-rcnn_aognet-12m_fpn_1x_coco", ["mmdet"]))
    file.write_text(CONFIG.format(base=base, root=str(folder), classes=CLASSES))
    changes = [f"train_cfg.max_iters={ITERATIONS}", f"default_hooks.checkpoint.interval={PERIOD}"]
    options = ["--pictures", "0", "--cfg-options", *changes, "--work-dir"]
    state = itemgetter("state_dict", "optimizer", "param_schedulers")
    return Tool("MMDetection", ["train", str(file)], options, f"iter_{ITERATIONS}.pth", state)


def classifier(folder: Path) -> Tool:
    """A DG-Net of CIFAR's size on a folder of noise."""
    from gram_backbones.classification.engine import Trainer  # noqa: F401

    draw = np.random.default_rng(0)
    for split, label, number in product(("train", "val"), "ab", range(8)):
        (folder / "classes" / split / label).mkdir(parents=True, exist_ok=True)
        noise = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "classes" / split / label / f"{number}.png")
    command = ["train-classifier", "--model", "dgnet_cifar_r20", "--data", f"{folder}/classes"]
    options = "--batch-size 4 --img-size 16 --epochs 3 --workers 0 --output".split()

    def state(content: dict[str, Any]) -> Any:
        return itemgetter("model", "ema", "optimizer", "updates")(content["training"])

    def checkpoints(output: Path) -> list[Path]:
        return [file for name in (LAST, PREVIOUS) if (file := output / name).is_file()]

    return Tool("classifier", command, options, LAST, state, checkpoints)


TOOLS = {tool.__name__: tool for tool in (detectron2, mmdetection, classifier)}


def each_tool(parser: ArgumentParser) -> Iterator[tuple[Namespace, Tool, Path]]:
    """Parse the command line, and yield it with each tool and its folder, one after the other."""
    parser.add_argument("--only", choices=TOOLS, help="one of the commands that train")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use the threads of another
    with TemporaryDirectory() as name:
        for tool_name in [args.only] if args.only else TOOLS:
            folder = Path(name, tool_name)
            make_demo_dataset(folder, train=4, val=2)
            yield args, TOOLS[tool_name](folder), folder


class Training:
    """A running process of a tool.

    Args:
        tool: what trains.
        output: its folder.
        resume: whether it resumes.
    """

    def __init__(self, tool: Tool, output: Path, *, resume: bool = False):
        self.log = output.with_suffix(".log")
        flags = ["--resume"] if resume else []
        arguments = [*tool.command, *flags, *tool.options, str(output)]
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_run, args=(arguments, self.log))
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; raises if the process does not end in time."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"the training did not end in {seconds} s: {self.said()[-500:]}")
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is true or the process has ended; whether it is true."""
        while not (found := condition()) and self.process.is_alive():
            time.sleep(0.0002)
        return found

    def kill(self) -> bool:
        """Kill the process; whether it was still running."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -9

    def said(self) -> str:
        """All that it printed."""
        return self.log.read_text()


def _run(arguments: list[str], log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    cli.main(arguments)
