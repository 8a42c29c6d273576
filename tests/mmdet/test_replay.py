"""What a resumed run of MMEngine's loops repeats: data order, augmentation, the model's draws."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")

import mmdet
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.runner.loops import _InfiniteDataloaderIterator

from gram_backbones.mmdet.runs import GramRunner
from tests.conftest import check_ended_well
from tests.mmdet.test_runs import ROOT, SMALL_MASK_RCNN, demo, run, write_config  # noqa: F401

# ruff: noqa: F811 (fixtures are arguments)

SEVERAL = 2  # loader workers


@TRANSFORMS.register_module()
class DrawFromAll:
    """Adds numbers of all three generators, as augmentations draw them."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def __call__(self, results):
        noise = (random.random(), np.random.rand(), torch.rand(()).item())
        return {"inputs": torch.tensor([results["sample_idx"] + self.shift, *noise])}


@DATASETS.register_module()
class Landscapes(BaseDataset):
    """Eleven samples, three of which are portraits to AspectRatioBatchSampler."""

    METAINFO = {"classes": ("a",)}

    def load_data_list(self):
        return [{"width": 2, "height": 3 if i % 4 == 1 else 1} for i in range(11)]


@MODELS.register_module()
class Noisy(BaseModel):
    """A linear layer that draws as detectors do: dropout, and a sample by permutation."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.seen = []

    def forward(self, inputs, mode="tensor"):
        x = torch.stack(list(inputs))
        self.seen.append(x.tolist())
        y = torch.nn.functional.dropout(self.layer(x / 10), 0.3)
        return {"loss": (y + 0.1 * torch.randn_like(y)).pow(2)[torch.randperm(len(y))[:1]].mean()}


LOOPS = {
    "epochs": dict(by_epoch=True, max_epochs=4),
    "iterations": dict(by_epoch=False, max_iters=14),
}
# Resumed after this many epochs or iterations.
STOPS = {"epochs": 2, "iterations": 5}
SAMPLERS = {
    "grouped": dict(batch_sampler=dict(type="mmdet.AspectRatioBatchSampler"), batch_size=2),
    "plain": dict(batch_size=2),
}


def make_runner(folder, loop, workers=0, batches="grouped", **kwargs):
    by_epoch = loop == "epochs"
    dataset = dict(type="Landscapes", pipeline=[dict(type="DrawFromAll")], serialize_data=False)
    sampler = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    loader = dict(
        dataset=dataset,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        **SAMPLERS[batches],
    )
    checkpoint = dict(type="CheckpointHook", by_epoch=by_epoch, interval=1)
    options = dict(
        model=dict(type="Noisy"),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=LOOPS[loop],
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
        param_scheduler=[dict(type="LinearLR", start_factor=0.1, end=9, by_epoch=False)],
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type="EMAHook")],
        randomness=dict(seed=3),
        experiment_name=f"{folder.name}-{random.SystemRandom().random()}",
        default_scope="mmengine",
    )
    return GramRunner.from_cfg(Config({**options, **kwargs}))


def train(*args, **kwargs):
    """The whole checkpoint at the end, and the inputs seen."""
    runner = make_runner(*args, **kwargs)
    runner.train()
    file = Path(runner.work_dir, Path(runner.work_dir, "last_checkpoint").read_text())
    if runner.train_dataloader.num_workers:
        # Left to the garbage collection, each worker takes 5 s to end.
        runner.train_dataloader._iterator._shutdown_workers()
    return torch.load(file, weights_only=False), runner.model.seen


def assert_same_end(one, other):
    for part in ("state_dict", "ema_state_dict"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), (part, name)
    momenta = [
        [s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (one, other)
    ]
    assert all(map(torch.equal, *momenta))


@pytest.mark.grid
@pytest.mark.parametrize("batches", SAMPLERS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("workers", (0, SEVERAL))
def test_a_resumed_run_ends_as_one_that_was_not_stopped(loop, workers, batches, tmp_path):
    """Resumed with other workers than before, and than the whole run, which has none."""
    end, seen = train(tmp_path / "whole", loop, batches=batches)
    stop = STOPS[loop]
    name = f"epoch_{stop}" if loop == "epochs" else f"iter_{stop}"
    done = stop * 6 if loop == "epochs" else stop
    resume = dict(resume=True, load_from=str(tmp_path / f"whole/{name}.pth"))
    resumed, rest = train(tmp_path / "resumed", loop, workers, batches, **resume)
    assert rest == seen[done:]
    assert_same_end(resumed, end)


@pytest.mark.grid
@pytest.mark.parametrize("loop", LOOPS)
def test_the_number_of_loader_workers_does_not_matter(loop, tmp_path):
    ends = [train(tmp_path / str(workers), loop, workers) for workers in (0, SEVERAL)]
    assert ends[0][1] == ends[1][1]
    assert_same_end(ends[0][0], ends[1][0])


@pytest.mark.parametrize(
    ("loop", "options", "told"),
    (
        ("epochs", {}, "a resumed run repeats this one bit for bit"),
        (
            "epochs",
            {"randomness": {"seed": None}},
            "may differ in the order of the samples (randomness.seed is not set)",
        ),
        (
            "epochs",
            {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "by_epoch": False}}},
            "may differ in an unfinished epoch, which starts again",
        ),
        (
            "epochs",
            {"custom_hooks": [{"type": "EarlyStoppingHook", "monitor": "loss"}]},
            "may differ in the state of EarlyStoppingHook",
        ),
        ("iterations", {}, "a resumed run repeats this one bit for bit"),
        (
            "iterations",
            {"train_cfg": dict(by_epoch=False, max_iters=1, fast_forward_on_resume=True)},
            "may differ in the samples (fast_forward_on_resume=True)",
        ),
    ),
)
def test_the_log_says_once_what_is_not_repeated(loop, options, told, tmp_path, monkeypatch):
    if "fast_forward" in told and not hasattr(_InfiniteDataloaderIterator, "skip_iter"):
        pytest.skip("upstream's MMEngine has no such option")
    runner = make_runner(tmp_path, loop, **options)
    lines = []
    monkeypatch.setattr(runner.logger, "info", lambda line, *_: lines.append(str(line)))
    runner.train()
    (line,) = [line for line in lines if "exact resume" in line]
    assert told in line if not torch.cuda.is_available() else told.split(" repeat ")[-1] in line


def test_a_loader_that_is_no_config_is_left_alone_and_told(tmp_path, monkeypatch):
    loader = make_runner(tmp_path / "a", "epochs").build_train_loop(LOOPS["epochs"]).dataloader
    plain = torch.utils.data.DataLoader(loader.dataset, collate_fn=loader.collate_fn)
    lines = []
    runner = make_runner(tmp_path / "b", "epochs")
    runner._train_dataloader = plain
    monkeypatch.setattr(runner.logger, "info", lines.append)
    assert runner.build_train_loop(LOOPS["epochs"]).dataloader is plain
    assert "train_dataloader is not a config" in lines[-1]


@pytest.mark.grid
@pytest.mark.parametrize("workers", (0, SEVERAL))
def test_hooks_reach_the_data_set_itself(workers, tmp_path):
    """mmdet's hook replaces the pipeline, and the workers with it."""
    other = [dict(type="DrawFromAll", shift=11.0)]
    switch = dict(type="mmdet.PipelineSwitchHook", switch_epoch=1, switch_pipeline=other)
    _, seen = train(tmp_path, "epochs", workers, custom_hooks=[switch])
    assert max(x[0] for batch in seen[:6] for x in batch) == 10
    assert min(x[0] for batch in seen[6:] for x in batch) == 11


# A detector of the configs, with what training with several scales and flips draws.
DRAWS = """
train_pipeline[2:3] = [
    dict(type="RandomChoiceResize", scales=[(96, 64), (96, 96), (128, 96)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
]
train_dataloader["num_workers"], train_dataloader["persistent_workers"] = 2, True
train_cfg = dict(_delete_=True, type="{loop}TrainLoop", max_{unit}s=4, val_interval=4)
default_hooks["checkpoint"] = dict(by_epoch={by_epoch}, interval=2)
custom_hooks = [dict(type="EMAHook")]
runner_type = "GramRunner"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "processes"), (("epoch", 1), ("iter", 2)))
def test_a_detector_s_resumed_run_ends_as_one_that_was_not_stopped(loop, processes, demo, tmp_path):
    """With two workers, resumed with three; in one process resumed by MMDetection's own tool."""
    if torch.cuda.device_count() == 1 and processes == 2:
        pytest.skip("two processes take two GPUs, or none")
    base = ROOT / "mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
    names = dict(loop=f"{loop.title()}Based", unit=loop, by_epoch=loop == "epoch")
    extra = SMALL_MASK_RCNN + DRAWS.format(**names)
    file = write_config(tmp_path, base, demo, extra)
    ours, own = ROOT / "tools/train_mmdet.py", Path(mmdet.__file__).parent / ".mim/tools/train.py"
    resume = ("--resume", tmp_path / f"whole/{loop}_2.pth")
    for name, more in (("whole", ()), ("resumed", resume)):
        command = [own if more and processes == 1 else ours, file, "--work-dir", tmp_path / name]
        if processes == 2:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command = [*torchrun, "--local-addr=127.0.0.1", *command]
        workers = ("--cfg-options", f"train_dataloader.num_workers={3 if more else 2}")
        done = run(*command, *more, *workers, cwd=tmp_path)
        check_ended_well(done)
        assert "a resumed run repeats this one bit for bit" in done.stdout
    ends = [
        torch.load(tmp_path / name / f"{loop}_4.pth", weights_only=False)
        for name in ("whole", "resumed")
    ]
    assert_same_end(*ends)
