"""200 mistakes in MMDetection's configs: ``bash tools/test.sh --reliability``."""

from __future__ import annotations

import random
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from .mutations import Mutation, Outcome, judge, main, misspelt

CONFIG = """
_base_ = {base!r}
data_root = {root!r} + "/"
classes = dict(data_root=data_root, metainfo=dict(classes={classes!r}), ann_file="train.json",
               data_prefix=dict(img="train/"))
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=1,
                        dataset=dict(pipeline=pipeline, **classes))
val_dataloader = val_evaluator = val_cfg = None
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=1)
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=100))
param_scheduler = []
model = dict(
    backbone=dict(variant="aognet_4m"),
    neck=dict(in_channels=[56, 120, 256, 640], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=4),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=4),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
)
"""
TABLES = {
    "wrong type": {
        "model.backbone.frozen_stages": ("many",),
        "model.backbone.out_indices": ("x", "3"),
        "model.neck.out_channels": ("wide",),
        "model.neck.num_outs": ("all",),
        "train_dataloader.batch_size": ("big", "1.5"),
        "train_dataloader.num_workers": ("many",),
        "optim_wrapper.optimizer.lr": ("fast",),
        "train_cfg.max_iters": ("long", "1.5"),
        "model.rpn_head.anchor_generator.scales": ("8", "x"),
    },
    "out of range": {
        "model.backbone.frozen_stages": ("-2", "7"),
        "model.backbone.output_stride": ("4", "64"),
        "model.neck.out_channels": ("0", "-8"),
        "model.neck.num_outs": ("0", "-1", "2"),
        "train_dataloader.batch_size": ("0", "-1"),
        "train_dataloader.num_workers": ("-1",),
        "optim_wrapper.optimizer.lr": ("-0.1",),
        "train_cfg.max_iters": ("-3",),
        "model.train_cfg.rcnn.sampler.num": ("-1",),
    },
    "channels": {
        "model.neck.in_channels": ("[56,120,256]", "[56,120,256,512]", "[1]", "640"),
        "model.rpn_head.in_channels": ("32",),
        "model.roi_head.bbox_roi_extractor.out_channels": ("32",),
        "model.roi_head.bbox_head.in_channels": ("32",),
        "model.roi_head.mask_head.in_channels": ("32",),
    },
    "strides": {
        "model.rpn_head.anchor_generator.strides": ("[4,8]", "[]", "[4,8,16,32,64,128]"),
        "model.roi_head.bbox_roi_extractor.featmap_strides": ("[4,8,16,32,64,128]", "[]"),
        "model.backbone.out_indices": ("[0,1]", "[0,9]", "[]"),
    },
    "classes": {
        "model.roi_head.bbox_head.num_classes": ("0", "3", "5", "80"),
        "model.roi_head.mask_head.num_classes": ("0", "3", "5", "80"),
    },
}
KEYS = (
    "train_cfg randomness train_dataloader.batch_size train_dataloader.num_workers "
    "train_dataloader.dataset.ann_file model.backbone.variant model.backbone.frozen_stages "
    "model.backbone.norm_eval model.neck.out_channels model.neck.num_outs model.rpn_head "
    "model.rpn_head.feat_channels model.roi_head.bbox_head.num_classes model.roi_head "
    "optim_wrapper.optimizer.momentum optim_wrapper.optimizer"
).split()
VARIANTS = ("aognet_12m", "aognet_40m_released", "aognet_4m")


def draw_mutation(draw: random.Random) -> Mutation:
    """A mistake; kinds are equally likely."""
    kind = draw.choice(("unknown key", "misspelt variant", *TABLES))
    if kind == "unknown key":
        *parents, name = draw.choice(KEYS).split(".")
        return Mutation(kind, ".".join([*parents, misspelt(name, draw)]), "1")
    if kind == "misspelt variant":
        return Mutation(kind, "model.backbone.variant", misspelt(draw.choice(VARIANTS), draw))
    key = draw.choice([*TABLES[kind]])
    return Mutation(kind, key, draw.choice(TABLES[kind][key]))


def check(count: int, seed: int = 0) -> list[Outcome]:
    """Draw mistakes, and run each as far as one iteration."""
    from mmcv.transforms import LoadImageFromFile

    from gram_backbones.cli import mmdet
    from gram_backbones.config_folders import find_config
    from gram_backbones.d2.demo_dataset import CLASSES, make_demo_dataset
    from gram_backbones.mmdet import GramRunner

    draw, outcomes = random.Random(seed), []
    with TemporaryDirectory() as folder:
        make_demo_dataset(folder, train=4, val=2)
        file = Path(folder, "mistakes.py")
        base = str(find_config("mask-rcnn_aognet-12m_fpn_1x_coco", ["mmdet"]))
        file.write_text(CONFIG.format(base=base, root=folder, classes=CLASSES))
        for number in range(count):
            work = ["--work-dir", f"{folder}/{number}", "--pictures", "0"]

            def run(mutation: Mutation) -> None:
                change = ["--cfg-options", f"{mutation.key}={mutation.value}"]
                args = mmdet.train_parser().parse_args([str(file), *work, *change])  # noqa: B023
                GramRunner.from_cfg(mmdet._prepare_training(args)).train()

            load = LoadImageFromFile.transform
            reads = mock.patch.object(LoadImageFromFile, "transform", autospec=True)
            with reads as reader, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                reader.side_effect = load
                outcomes.append(judge(draw_mutation(draw), run, lambda: reader.called))  # noqa: B023
            end_logs()
    return outcomes


def end_logs() -> None:
    """Close the files that MMEngine's loggers write to; later runs begin their own."""
    from mmengine.logging import MMLogger

    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    MMLogger._instance_dict.clear()


if __name__ == "__main__":
    main(__doc__, check)
