"""MMDetection's runner with our configs: the installed wheel, the tools, two processes, a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="its part of the package draws the data set")

import mmdet
from mmengine.config import Config

from gram_backbones import cli
from gram_backbones.cli import mmdet as mmdet_cli
from gram_backbones.d2.demo_dataset import CLASSES, make_demo_dataset
from gram_backbones.mmdet import GramRunner
from gram_backbones.report.runs import read_run
from tests.conftest import DATASETS, check_ended_well, needs_coco

ROOT = Path(__file__).resolve().parents[2]
ATSS = ROOT / "mmdet_configs/atss/atss_dgnet-r50_fpn_1x_coco.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A few images of the demo data set in COCO's layout."""
    root = tmp_path_factory.mktemp("datasets")
    make_demo_dataset(root, train=10, val=4)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}.json").rename(root / f"annotations/instances_{split}2017.json")
        (root / split).rename(root / f"{split}2017")
    return root


def write_config(folder, base, root, extra=""):
    """A user's own config: a base, a data set of four classes, few and small steps."""
    file = folder / "my_config.py"
    file.write_text(f"""
_base_ = {str(base)!r}
data_root = {str(root)!r} + "/"
classes = dict(data_root=data_root, metainfo=dict(classes={CLASSES!r}))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=classes.copy())
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=classes.copy())
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(
    ann_file=data_root + "annotations/instances_val2017.json"
)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2))
train_cfg = dict(
    _delete_=True, type="IterBasedTrainLoop", max_iters=2, val_interval=100
)
log_processor = dict(by_epoch=False)
param_scheduler = []
randomness = dict(seed=0)
{extra}
""")
    return file


def run(*command, python_path=None, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    if python_path:
        env["PYTHONPATH"] = str(python_path)
    command = [sys.executable, "-W", "ignore", *map(str, command)]
    return subprocess.run(command, env=env, capture_output=True, text=True, **options)


def weights(file):
    # MMEngine's checkpoints hold more than tensors; this one was written a moment ago.
    return torch.load(file, weights_only=False)["state_dict"]


SMALL_MASK_RCNN = """
model = dict(
    backbone=dict(variant="aognet_4m"),
    neck=dict(in_channels=[56, 120, 256, 640], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32, num_classes=4),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=16, num_classes=4),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=50)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="PackDetInputs"),
]
train_dataloader["dataset"]["pipeline"] = train_pipeline
"""


@pytest.mark.slow
def test_a_config_of_one_s_own_trains_with_mmdetection_s_own_tool(installed, demo, tmp_path):
    base = installed / "gram_backbones/mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
    file = write_config(tmp_path, base, demo, SMALL_MASK_RCNN)
    tool = Path(mmdet.__file__).parent / ".mim/tools/train.py"
    done = run(tool, file, "--work-dir", tmp_path / "out", python_path=installed, cwd=tmp_path)
    check_ended_well(done)
    assert (tmp_path / "out/iter_2.pth").is_file()
    dumped = next((tmp_path / "out").glob("2*/vis_data/config.py"))
    assert Config.fromfile(dumped).model.backbone.variant == "aognet_4m"


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """A run of tools/train_mmdet.py over two iterations and an evaluation."""
    folder = tmp_path_factory.mktemp("run")
    base = ROOT / "mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
    file = write_config(folder, base, "data/none", SMALL_MASK_RCNN)
    options = ("--data-root", demo, "--work-dir", folder / "out", "--pictures", 3)
    changes = ("--cfg-options", "train_cfg.val_interval=2", "val_dataloader.batch_size=2")
    done = run(ROOT / "tools/train_mmdet.py", file, *options, *changes)
    check_ended_well(done)
    return file, folder / "out", done.stdout


@pytest.mark.slow
def test_the_tool_trains_evaluates_and_draws(trained):
    _, out, log = trained
    assert "coco/bbox_mAP" in log and "coco/segm_mAP" in log and "stay random" in log
    assert (out / "iter_2.pth").is_file()
    pictures = sorted((out / "pictures").glob("*.png"))
    assert [p.name for p in pictures] == ["000000.png", "000001.png", "000002.png"]
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape == (424, 806, 3)  # predictions on the left, truth on the right
    assert np.abs(picture[24:, :400].astype(int) - picture[24:, 406:]).mean() > 1


@pytest.mark.slow
def test_the_run_says_what_its_report_needs(trained, demo):
    run = read_run(trained[1])
    assert run.iterations == run.max_iterations == 2 and "bbox/AP" in run.precisions
    assert [file.name for file in run.predictions["val"]] == ["val.bbox.json", "val.segm.json"]
    annotations = str(demo / "annotations/instances_val2017.json")
    assert run.record.datasets["val"] == [annotations, str(demo / "val2017")]
    assert run.record.changes["model.backbone.variant"] == ["aognet_12m_released", "aognet_4m"]
    assert run.record.seed == 0 and run.checkpoint.name == "iter_2.pth"


@pytest.mark.slow
def test_the_tool_evaluates_a_checkpoint_and_draws(trained, demo, tmp_path):
    file, out, _ = trained
    options = ("--data-root", demo, "--work-dir", tmp_path / "test", "--pictures", 1, "--deploy")
    done = run(ROOT / "tools/test_mmdet.py", file, out / "iter_2.pth", *options)
    check_ended_well(done)
    assert "coco/bbox_mAP" in done.stdout
    assert re.search(r"loaded (\d+) of \1 tensors from .*iter_2.pth", done.stdout + done.stderr)
    assert len(list((tmp_path / "test/pictures").glob("*.png"))) == 1
    # Bug: an evaluation in the training's folder replaced the training's config.
    kept = (out / file.name).read_text()
    options = ("--data-root", demo, "--work-dir", out, "--pictures", 0)
    check_ended_well(run(ROOT / "tools/test_mmdet.py", file, out / "iter_2.pth", *options))
    assert "max_iters" in kept and (out / file.name).read_text() == kept


@pytest.mark.slow
def test_the_tool_refuses_what_does_not_fill_the_detector(trained, demo, tmp_path):
    file, out, _ = trained
    state = weights(out / "iter_2.pth")
    bare = {n: v for n, v in state.items() if n.startswith("backbone.")}
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")
    options = ("--data-root", demo, "--work-dir", tmp_path / "test")
    done = run(ROOT / "tools/test_mmdet.py", file, tmp_path / "bare.pth", *options)
    assert done.returncode == 1 and "missing: neck.lateral_convs" in done.stderr


@pytest.mark.slow
def test_the_tool_resumes_without_the_weight_file(trained, demo, tmp_path):
    file, out, _ = trained
    key = "model.backbone.init_cfg"
    init = (f"{key}.type=Pretrained", f"{key}.checkpoint={tmp_path}/gone.pth")
    options = ("--data-root", demo, "--work-dir", tmp_path, "--resume", out / "iter_2.pth")
    changes = ("--cfg-options", "train_cfg.max_iters=3", *init)
    done = run(ROOT / "tools/train_mmdet.py", file, *options, *changes)
    check_ended_well(done)
    assert "resumed epoch: 0, iter: 2" in done.stdout
    first, last = weights(out / "iter_2.pth"), weights(tmp_path / "iter_3.pth")
    fixed = ("backbone.stem.", "backbone.res2.")
    assert all(torch.equal(v, last[n]) for n, v in first.items() if n.startswith(fixed))
    assert any(not torch.equal(v, last[n]) for n, v in first.items())


def test_resuming_without_a_checkpoint_starts_from_load_from(demo, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import train_mmdet

    (tmp_path / "w.pth").touch()
    load_from = f"load_from={tmp_path / 'w.pth'}"
    arguments = ["train_mmdet.py", ATSS, "--data-root", demo, "--work-dir", tmp_path]
    arguments += ["--resume", "--cfg-options", load_from]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    seen = []

    class Runner:
        def train(self):
            pass

    monkeypatch.setattr(GramRunner, "from_cfg", lambda cfg: seen.append(cfg) or Runner())
    train_mmdet.main()
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    train_mmdet.main()
    assert [bool(cfg.get("resume")) for cfg in seen] == [False, True]
    assert [cfg.load_from for cfg in seen] == [str(tmp_path / "w.pth"), None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((ATSS,), "data set not found"),
        (
            (ATSS, "--data-root", "/no/such/folder"),
            "/no/such/folder/annotations/instances_train2017",
        ),
        (("no_such_config.py",), "no_such_config.py"),
        (
            (ATSS, "--resume", "gone.pth", "--data-root", "DEMO"),
            "there is no checkpoint gone.pth",
        ),
    ),
)
def test_the_tool_refuses_with_a_sentence(arguments, message, demo, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    import train_mmdet

    monkeypatch.setattr(sys, "argv", ["train_mmdet.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "argv", [str(demo) if a == "DEMO" else a for a in sys.argv])
    with pytest.raises(SystemExit, match=message):
        train_mmdet.main()
    assert not list(tmp_path.iterdir())


# ATSS has no random sampling, and its normalisers are means over all processes: two processes with
# one image each compute what one process computes on both.
SMALL_ATSS = """
model = dict(
    backbone=dict(variant="dgnet_r18", frozen_stages=0),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=1, num_classes=4),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(160, 160), keep_ratio=True),
    dict(type="PackDetInputs"),
]
train_dataloader["dataset"]["pipeline"] = train_pipeline
train_dataloader["batch_size"] = {batch_size}
train_cfg["max_iters"] = 5
default_hooks["checkpoint"]["interval"] = 1
optim_wrapper = dict(optimizer=dict(lr=0.002))
"""


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_on_the_joint_batch(
    demo, tmp_path, check_gloo_ended
):
    if torch.cuda.device_count() == 1:
        pytest.skip("two processes take two GPUs, or none")
    ends = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        extra = SMALL_ATSS.format(batch_size=2 // processes)
        file = write_config(folder, ATSS, demo, extra)
        command = [ROOT / "tools/train_mmdet.py", file, "--work-dir", folder]
        if processes == 2:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command = [*torchrun, "--local-addr=127.0.0.1", *command]
        done = run(*command, cwd=folder)
        check_ended_well(done)
        ends[processes] = weights(folder / "iter_5.pth")
        logs = [json.loads(s) for s in next(folder.glob("2*/vis_data/scalars.json")).open()]
        assert len([line for line in logs if "loss" in line]) == 5
    check_gloo_ended()
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[2][name], value, rtol=0, atol=1e-5, msg=name)
    first = weights(tmp_path / "1/iter_1.pth")
    moves = [(value - first[name]).abs().max() for name, value in ends[1].items()]
    assert max(moves) > 5e-4  # by far more than the bound


@pytest.mark.slow
@needs_coco
def test_a_shipped_config_trains_on_photographs_is_killed_and_resumed(tmp_path):
    file = tmp_path / "photographs.py"
    file.write_text(f"""
_base_ = "{ROOT}/mmdet_configs/mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=6, val_interval=6)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3), logger=dict(interval=1))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
model = dict(test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=5)))
""")
    small = (
        "train_dataloader.num_workers=0 train_dataloader.persistent_workers=False "
        "val_dataloader.num_workers=0 val_dataloader.persistent_workers=False "
        "train_dataloader.dataset.pipeline.2.scale=(224,160) "
        "val_dataloader.dataset.pipeline.1.scale=(192,128) optim_wrapper.optimizer.lr=0.002"
    ).split()
    command = [ROOT / "tools/train_mmdet.py", file, "--data-root", DATASETS / "coco"]
    command += ["--work-dir", tmp_path, "--pictures", 2]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--cfg-options", *small],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 600
    while not (tmp_path / "last_checkpoint").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "iter_6.pth").exists()
    done = run(*command, "--resume", "--cfg-options", *small)
    check_ended_well(done)
    assert "iter: 3" in done.stdout and "coco/bbox_mAP" in done.stdout
    assert (tmp_path / "iter_6.pth").is_file()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def test_misspelt_variants_and_keys_are_told_what_they_may_mean(demo, monkeypatch, capsys):
    monkeypatch.setattr(GramRunner, "from_cfg", lambda cfg: pytest.fail("it was built"))
    variant = ("train_cfg.max_epoch=2", "model.backbone.variant=dgnet_r5O")
    with pytest.raises(SystemExit, match="variant is 'dgnet_r5O' .did you mean 'dgnet_r50'"):
        cli.main(["train", str(ATSS), "--data-root", str(demo), "--cfg-options", *variant])
    said = capsys.readouterr().err
    assert "adds train_cfg.max_epoch to the config (did you mean 'max_epochs'?)" in said
    for key, sentence in (
        ("train_cgf.max_epochs=2", "sets train_cgf.max_epochs.*did you mean 'train_cfg'"),
        ("my_own=2", "nothing reads my_own; allowed are"),
        ("model.backbone.edge=static", "model.backbone, DGNet, has no argument 'edge' .*'edges'"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            cli.main(["train", str(ATSS), "--data-root", str(demo), "--cfg-options", key])
    with pytest.raises(SystemExit, match="there is no checkpoint autors .did you mean 'authors'"):
        cli.main(["test", str(ATSS), "autors", "--data-root", str(demo)])
    with pytest.raises(SystemExit, match="did you mean 'atss_dgnet-r50_fpn_1x_coco'"):
        mmdet_cli.train(["atss_dgnet-r50_fpn_1x_coc"])


@pytest.mark.slow
def test_predictions_come_from_a_detector_that_is_filled(trained, demo, tmp_path):
    file, out, _ = trained
    command = ["-m", "gram_backbones", "predict", file, out / "iter_2.pth", demo / "val2017"]
    done = run(*command, "--output", tmp_path / "o", "--score", 0.0, "--deploy", cwd=ROOT)
    check_ended_well(done)
    found = json.loads((tmp_path / "o/predictions.json").read_text())
    assert len(found) == len(list((tmp_path / "o").glob("*.png"))) == 4
    assert {*next(iter(found.values()))["names"]} <= {*CLASSES}
    bare = {n: v for n, v in weights(out / "iter_2.pth").items() if n.startswith("backbone.")}
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")
    command[4] = tmp_path / "bare.pth"
    done = run(*command, "--output", tmp_path / "o", cwd=ROOT)
    assert done.returncode == 2 and "missing: neck.lateral_convs" in done.stderr
    assert "Traceback" not in done.stderr
