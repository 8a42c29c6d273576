"""Config nodes of the backbones, and the configs shipped with the package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import reduce
from math import inf
from operator import getitem
from types import NoneType
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config_folders import list_configs
from ..lost_processes import LOADER_TIMEOUT
from ..staged import FEATURES
from ..suggestions import did_you_mean
from .interface import CONFIG_NODES


def add_gram_backbones_config(cfg: CfgNode) -> None:
    """Add the keys of our backbones and trainer to a Detectron2 config, if they are missing."""
    for name, node in CONFIG_NODES.items():
        if name not in cfg.MODEL:
            cfg.MODEL[name] = node.clone()
    # Class names in the order of the heads' outputs; the trainer fills them in from the data.
    if "CLASSES" not in cfg.MODEL:
        cfg.MODEL.CLASSES = []
    # Evaluate and predict with a deployed copy of the backbone: norms folded in, fused operators.
    if "DEPLOY" not in cfg.TEST:
        cfg.TEST.DEPLOY = False
    # Leave out, and count, pictures of a training that cannot be read.
    if "SKIP_UNREADABLE" not in cfg.DATALOADER:
        cfg.DATALOADER.SKIP_UNREADABLE = False
    # Longest wait in seconds for a batch of the loaders' workers.
    if "TIMEOUT" not in cfg.DATALOADER:
        cfg.DATALOADER.TIMEOUT = LOADER_TIMEOUT
    # Pictures of predictions next to the ground truth after an evaluation: how many, and the
    # lowest score of an instance to draw.
    if "PICTURES" not in cfg.TEST:
        cfg.TEST.PICTURES = CfgNode({"NUM": 32, "SCORE_THRESH": 0.5})
    # Log versions, the whole config and the model's modules before training.
    if "VERBOSE" not in cfg:
        cfg.VERBOSE = False


def merge_config(cfg: CfgNode, file: str, changes: Sequence[str] = ()) -> None:
    """Merge a file and ``KEY VALUE`` pairs into a config; a misspelt key is told what it may mean.

    Raises:
        ValueError: there is no such key, or its value is None in place of one that is needed.
    """
    types = {key: type(_value(cfg, key)) for key in _keys(cfg)}
    try:
        cfg.merge_from_file(file)
        cfg.merge_from_list(list(changes))
    except (AssertionError, KeyError) as error:
        found = re.search(r"Non-existent (?:config )?key: ([\w.]+)", str(error))
        if not found:
            raise
        key = found[1]
        raise ValueError(f"there is no key {key}{did_you_mean(key, _keys(cfg))}") from None
    for key, kind in types.items():  # yacs lets None replace a value of any type
        if _value(cfg, key) is None and kind is not NoneType:
            raise ValueError(f"{key} is None; allowed is a value of type {kind.__name__}")


# Least and largest values of numbers whose mistakes would show late, or far from their cause.
_RANGES = {
    "DATALOADER.NUM_WORKERS": (0, inf),
    "DATALOADER.TIMEOUT": (1, inf),
    "MODEL.AOGNET.DROPOUT": (0, 1),
    "MODEL.FPN.OUT_CHANNELS": (1, inf),
    "MODEL.ROI_BOX_HEAD.FC_DIM": (1, inf),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (1, inf),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": (1, inf),
    "SOLVER.BASE_LR": (0, inf),
    "SOLVER.CHECKPOINT_PERIOD": (1, inf),
    "SOLVER.IMS_PER_BATCH": (1, inf),
    "SOLVER.MAX_ITER": (1, inf),
    "TEST.PICTURES.NUM": (0, inf),
}


def check_values(cfg: CfgNode) -> None:
    """Make sure that numbers are possible, and that a pyramid has the maps that heads read.

    Raises:
        ValueError: a value is not possible; the message names its key.
    """
    for key, (least, most) in _RANGES.items():
        value = _value(cfg, key)
        if not least <= value <= most:
            allowed = f"{least} and more" if most == inf else f"{least} to {most}"
            raise ValueError(f"{key} is {value}; allowed are {allowed}")
    name = cfg.MODEL.BACKBONE.NAME
    if name not in {f"build_{f}_fpn_backbone" for f in map(str.lower, CONFIG_NODES)}:
        return
    taken = list(cfg.MODEL.FPN.IN_FEATURES)
    stages = [feature for feature in FEATURES[1:] if feature in taken]
    first = FEATURES.index(taken[0]) if stages else 0
    if not taken or tuple(taken) != FEATURES[first : first + len(taken)] or not first:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {taken}; allowed are consecutive ones of {FEATURES[1:]}"
        )
    maps = [f"p{first + 1 + index}" for index in range(len(taken) + 1)]
    for key in ("RPN", "ROI_HEADS"):
        wanted = list(cfg.MODEL[key].IN_FEATURES)
        if not wanted or not {*wanted} <= {*maps}:
            raise ValueError(
                f"MODEL.{key}.IN_FEATURES is {wanted}; allowed are the pyramid's maps, {maps}"
            )
    pooled = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    first = maps.index(pooled[0])
    if pooled != maps[first : first + len(pooled)]:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {pooled}; allowed are consecutive ones of {maps}"
        )


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(getitem, key.split("."), cfg)


def _keys(cfg: CfgNode) -> Iterator[str]:
    for name, value in cfg.items():
        yield name
        if isinstance(value, CfgNode):
            yield from (f"{name}.{key}" for key in _keys(value))


def get_config_file(name: str) -> str:
    """Path of a config shipped with the package, for instance ``mask_rcnn_aognet40m_fpn_1x``.

    Raises:
        ValueError: there is no such config.
    """
    known = list_configs(["d2"])
    name = name.removesuffix(".yaml")
    if name not in known:
        meant = did_you_mean(name, known)
        raise ValueError(f"there is no config named {name!r}{meant}; allowed are {sorted(known)}")
    return str(known[name])


def get_config(name: str) -> CfgNode:
    """A Detectron2 config with our nodes and the named config merged into it."""
    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg
