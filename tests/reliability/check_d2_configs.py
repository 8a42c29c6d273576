"""200 mistakes in Detectron2's configs: ``bash tools/test.sh --reliability``."""

from __future__ import annotations

import logging
import random
from tempfile import TemporaryDirectory
from unittest import mock

from .mutations import Mutation, Outcome, judge, main, misspelt

BASE = """
MODEL.AOGNET.VARIANT aognet_4m MODEL.AOGNET.CHANNELS [8,16,24,32,48] MODEL.DEVICE cpu
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.RPN.POST_NMS_TOPK_TRAIN 20 INPUT.MIN_SIZE_TRAIN (64,) SOLVER.IMS_PER_BATCH 1
DATASETS.TRAIN ('mistakes',) DATASETS.TEST () SOLVER.MAX_ITER 1 SOLVER.STEPS ()
DATALOADER.NUM_WORKERS 0 TEST.PICTURES.NUM 0
""".split()
# What numbers of these keys may not be.
RANGES = {
    "SOLVER.IMS_PER_BATCH": ("0", "-2"),
    "SOLVER.MAX_ITER": ("-1", "0"),
    "SOLVER.BASE_LR": ("-0.1", "-1.0"),
    "SOLVER.CHECKPOINT_PERIOD": ("0", "-5"),
    "DATALOADER.NUM_WORKERS": ("-1",),
    "MODEL.BACKBONE.FREEZE_AT": ("-1", "7"),
    "MODEL.FPN.OUT_CHANNELS": ("0", "-8"),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("0", "-1"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("0", "-7"),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("-1",),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("-1",),
    "MODEL.AOGNET.OUTPUT_STRIDE": ("4", "64", "12"),
    "MODEL.AOGNET.DROPOUT": ("-0.5", "1.5"),
    "TEST.PICTURES.NUM": ("-1",),
}
CHANNELS = ("[8,16,25,32,48]", "[8,16]", "[]", "[8,16,24,32,-48]", "[8,16,24,0,48]")
STRIDES = {
    "MODEL.ANCHOR_GENERATOR.SIZES": ("[[32],[64]]", "[]", "[[32],[64],[128],[256],[512],[999]]"),
    "MODEL.RPN.IN_FEATURES": ("['p2','p9']", "[]", "['res2']"),
    "MODEL.ROI_HEADS.IN_FEATURES": ("['p7']", "[]", "['p2','p4']"),
    "MODEL.FPN.IN_FEATURES": ("['res2','res6']", "[]", "['res2','res4']"),
    "MODEL.AOGNET.OUT_FEATURES": ("['res6']", "[]", "['res3','res4']"),
}
TYPES = {int: ("many", "[1]", "None"), float: ("fast", "[0.1]"), bool: ("7", "maybe"),
         str: ("3", "[1]"), tuple: ("3", "x"), list: ("3", "x")}  # fmt: skip


def leaves(cfg, path=""):
    """All keys of a config with their values."""
    for key, value in cfg.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def draw_mutation(keys: dict[str, object], draw: random.Random) -> Mutation:
    kind = draw.choice(
        ("unknown key", "wrong type", "out of range", "misspelt variant", "channels", "strides",
         "classes")
    )  # fmt: skip
    if kind == "unknown key":
        *parents, name = draw.choice([k for k in keys if len(k.rpartition(".")[2]) > 3]).split(".")
        return Mutation(kind, ".".join([*parents, misspelt(name, draw)]), "1")
    if kind == "wrong type":
        key = draw.choice([k for k, v in keys.items() if type(v) in TYPES])
        return Mutation(kind, key, draw.choice(TYPES[type(keys[key])]))
    if kind == "misspelt variant":
        key = draw.choice(("MODEL.AOGNET.VARIANT", "MODEL.DGNET.VARIANT"))
        name = draw.choice(("aognet_12m", "aognet_40m_released", "dgnet_r50"))
        return Mutation(kind, key, misspelt(name, draw))
    if kind == "channels":
        return Mutation(kind, "MODEL.AOGNET.CHANNELS", draw.choice(CHANNELS))
    if kind == "classes":
        return Mutation(kind, "MODEL.ROI_HEADS.NUM_CLASSES", draw.choice(("0", "3", "5", "80")))
    table = RANGES if kind == "out of range" else STRIDES
    key = draw.choice([*table])
    return Mutation(kind, key, draw.choice(table[key]))


def check(count: int, seed: int = 0) -> list[Outcome]:
    """Draw mistakes, and run each as far as one iteration."""
    from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
    from detectron2.data.datasets import register_coco_instances

    from gram_backbones.cli import d2
    from gram_backbones.d2 import GramTrainer, get_config
    from gram_backbones.d2.demo_dataset import make_demo_dataset

    logging.disable(logging.ERROR)
    draw, config = random.Random(seed), "demo_mask_rcnn_aognet4m_fpn"
    keys = dict(leaves(get_config(config)))
    outcomes = []
    with TemporaryDirectory() as folder:
        files = make_demo_dataset(folder, train=4, val=2)
        register_coco_instances("mistakes", {}, str(files["train"]), f"{folder}/train")
        for number in range(count):
            output = ["OUTPUT_DIR", f"{folder}/{number}"]

            def run(mutation: Mutation) -> None:
                changes = [*BASE, *output, mutation.key, mutation.value]  # noqa: B023
                args = d2.parse_args(["--config", config, *changes])
                trainer = GramTrainer(d2.load_config(args))
                trainer.max_iter = min(trainer.max_iter, 1)
                trainer.train()

            read = detection_utils.read_image
            with mock.patch.object(detection_utils, "read_image", wraps=read) as reader:
                outcomes.append(judge(draw_mutation(keys, draw), run, lambda: reader.called))  # noqa: B023
    DatasetCatalog.remove("mistakes")
    MetadataCatalog.remove("mistakes")
    logging.disable(logging.NOTSET)
    return outcomes


if __name__ == "__main__":
    main(__doc__, check)
