"""Trainings that lose a process or a loader worker: ``bash tools/test.sh --reliability``.

Each training has two processes with a loader worker each. At a random moment one of them is killed,
stopped, or raises. The rest must end by itself within the bound, say what happened, and leave
neither a process nor a port behind.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from gram_backbones.config_folders import find_config

from .check_mmdet_configs import CONFIG

GRACE = 30  # that the launchers leave a process before they kill it
MARGIN = 20  # for computing: the machine may be busy
ENGINES = ("detectron2", "mmdetection", "classifier")
# What is done, and what the output must say; {pid} is the process that it is done to.
EVENTS = {
    "a rank is killed": r"SIGKILL",
    "a rank is stopped": r"has lost another one, which died or did not answer in time: .*[Tt]imed",
    "a rank raises": r"RuntimeError: raised by the check",
    "the launcher is killed": "",
    "the launcher gets SIGTERM": r"SIGTERM",
    "a loader worker is killed": r"DataLoader worker \(pid(\(s\))? {pid}\)",
    "a loader worker is stopped": (
        r"DataLoader (timed out after .* process {pid} \(stopped\)|"
        r"worker \(pid {pid}\) was stopped, and ended after)"
    ),
}
# Every process of the trainings raises at SIGUSR1.
RAISE = """
import signal

def raise_it(*_):
    raise RuntimeError("raised by the check")

signal.signal(signal.SIGUSR1, raise_it)
"""


class Outcome(NamedTuple):
    """How a training ended: seconds after the event, and what is wrong, if anything is."""

    engine: str
    event: str
    seconds: float
    wrong: list[str]
    output: str


def make_inputs(folder: Path, engines: Sequence[str]) -> None:
    """The data sets and configs of engines, and what lets a process raise."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(RAISE)
    if "classifier" in engines:
        draw_classes(folder / "classes")
    if "detectron2" in engines or "mmdetection" in engines:
        from gram_backbones.d2.demo_dataset import CLASSES, make_demo_dataset

        make_demo_dataset(folder / "gram_demo", train=8, val=2)
        base = str(find_config("mask-rcnn_aognet-12m_fpn_1x_coco", ["mmdet"]))
        config = CONFIG.format(base=base, root=str(folder / "gram_demo"), classes=CLASSES)
        for short, long in (("num_workers=0", "num_workers=1"), ("max_iters=1", "max_iters=9999")):
            config = config.replace(short, long)
        # A worker that is stopped after its last batch of a pass goes unnoticed.
        config += '\ntrain_dataloader["sampler"] = dict(type="InfiniteSampler")\n'
        (folder / "config.py").write_text(config)


def draw_classes(folder: Path) -> None:
    """Two classes of noise, large enough that an epoch outlasts what is done to it."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 1000), ("val", 4)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def command(engine: str, folder: Path, output: Path, port: int, timeout: int) -> list[str]:
    """A training of two processes that meet at a port."""
    ours = ["-m", "gram_backbones"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    torchrun += [f"--master-port={port}", *ours]
    limit = ["--timeout", str(timeout)]
    if engine == "detectron2":
        url = ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
        small = (
            "MODEL.AOGNET.CHANNELS [8,16,24,32,48] INPUT.MIN_SIZE_TRAIN (64,) SOLVER.IMS_PER_BATCH "
            "2 SOLVER.MAX_ITER 9999 SOLVER.STEPS () DATALOADER.NUM_WORKERS 1 DATASETS.TEST () "
            f"MODEL.DEVICE cpu OUTPUT_DIR {output}"
        )
        config = "demo_mask_rcnn_aognet4m_fpn"
        return [*ours, "train", config, *url, *limit, *small.split()]
    if engine == "mmdetection":
        options = ["--work-dir", str(output), "--pictures", "0", *limit]
        return [*torchrun, "train", str(folder / "config.py"), *options]
    model = ["--model", "aognet_4m", "--data", str(folder / "classes"), "--img-size", "32"]
    options = ["--batch-size", "4", "--workers", "1", "--output", str(output), *limit]
    return [*torchrun, "train-classifier", *model, *options]


def children(process: psutil.Process) -> list[psutil.Process]:
    """The processes that one has started, without Python's own helper."""
    found = sorted(process.children(), key=lambda child: (child.create_time(), child.pid))
    helper = "resource_tracker"
    return [child for child in found if is_alive(child) and helper not in str(child.cmdline())]


def wait_for(happened: Callable[[], object], seconds: float) -> bool:
    """Whether something happens within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(psutil.NoSuchProcess):
            if happened():
                return True
        time.sleep(0.1)
    return False


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs or is stopped; one that nobody has asked for its end does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def act(event: str, launcher: psutil.Popen, draw: random.Random) -> int:
    """Do it to one of the processes; returns which."""
    rank = draw.choice(children(launcher))
    target = launcher if "launcher" in event else rank
    if "worker" in event:
        found: list[psutil.Process] = []  # none where an epoch has just ended
        assert wait_for(lambda: found.extend(children(rank)) or found, 30), "there is no worker"
        target = found[0]
    if "killed" in event:
        target.kill()
    elif "SIGTERM" in event:
        target.terminate()
    elif "stopped" in event:
        target.suspend()
    else:
        target.send_signal(signal.SIGUSR1)
    return target.pid


def disturb(
    engine: str, event: str, folder: Path, draw: random.Random, timeout: int = 60
) -> Outcome:
    """Start a training, let something happen to it, and see how it ends."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", os.getcwd())])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    env["DETECTRON2_DATASETS"] = str(folder)
    output, log = folder / f"{engine}-{draw.random()}", folder / "output.txt"
    arguments = ["-W", "ignore", *command(engine, folder, output, port, timeout)]
    with log.open("w") as file:
        training = psutil.Popen([sys.executable, *arguments], stdout=file, stderr=file, env=env)
    others: list[psutil.Process] = []

    def has_workers() -> bool:
        others[:] = training.children(recursive=True)
        ranks = children(training)
        return len(ranks) == 2 and all(map(children, ranks))

    try:
        if not wait_for(has_workers, 180):
            return Outcome(engine, event, 0, ["the training did not begin"], log.read_text())
        time.sleep(draw.uniform(0, 30 if engine == "detectron2" else 6))  # its workers import first
        has_workers()
        start = time.monotonic()
        pid = act(event, training, draw)
        wrong = observe(training, others, timeout + GRACE + MARGIN)
        seconds, said = time.monotonic() - start, log.read_text()
    finally:
        for process in filter(is_alive, [training, *others]):
            process.kill()
    if not re.search(EVENTS[event].replace("{pid}", str(pid)), said):
        wrong.append(f"the output does not say so (process {pid})")
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        wrong.append(f"port {port}: {error}")
    return Outcome(engine, event, seconds, wrong, said)


def observe(training: psutil.Popen, others: list[psutil.Process], bound: int) -> list[str]:
    """What is wrong with the end of a training that should come within some seconds."""

    def has_ended() -> bool:
        return training.poll() is not None and not any(map(is_alive, others))

    if wait_for(has_ended, bound):
        return ["the exit code is 0"] if training.returncode == 0 else []
    left = [" ".join(process.cmdline())[-60:] for process in others if is_alive(process)]
    return [f"{len(left)} processes and the launcher are left after {bound} s: {left}"]


def check(
    count: int, seed: int, engines: Sequence[str], events: Sequence[str], timeout: int
) -> list[Outcome]:
    """Disturb as many trainings, every kind in turn."""
    kinds = [(engine, event) for event in events for engine in engines]
    outcomes = []
    with TemporaryDirectory() as name:
        make_inputs(Path(name), engines)
        for number in range(count):
            engine, event = kinds[number % len(kinds)]
            outcome = disturb(engine, event, Path(name), random.Random(seed + number), timeout)
            print(f"{engine}: {event}: {outcome.seconds:.1f} s", *outcome.wrong, flush=True)
            if outcome.wrong:
                print(outcome.output[-6000:], flush=True)
            outcomes.append(outcome)
    return outcomes


def main() -> int:
    """Print how many trainings of each kind ended as they must, and the longest time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=42, help="trainings; default: 42")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--event", choices=EVENTS, action="append")
    parser.add_argument("--timeout", type=int, default=60, help="of the trainings; default: 60")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing that was started stays
    engines, events = args.engine or ENGINES, args.event or [*EVENTS]
    outcomes = check(args.count, args.seed, engines, events, args.timeout)
    for engine, event in dict.fromkeys(outcome[:2] for outcome in outcomes):
        found = [outcome for outcome in outcomes if outcome[:2] == (engine, event)]
        good = sum(not outcome.wrong for outcome in found)
        longest = max(outcome.seconds for outcome in found)
        print(f"{engine:12} {event:28} {good} of {len(found)}, at most {longest:.0f} s")
    return any(outcome.wrong for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
