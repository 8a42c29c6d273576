"""The authors' released AOGNet-12M as figures: its tensors' names, fixed weights and outputs."""

import re
import zlib

import numpy as np
import torch

_CONVS = {"conv_norm_ac_1": "conv1", "conv_norm_ac_2": "conv2", "conv_norm_3": "conv3"}
_PATTERNS = (
    (r"stem\.(\d)\.conv_norm\.conv_norm\.(.+)", lambda m: f"stem.{m[1]}.{m[2]}"),
    (
        r"stage(\d)\.stage_\d_block_\d_transition\.0\.conv_norm\.conv_norm\.(.+)",
        lambda m: f"res{int(m[1]) + 2}.transition.0.{m[2]}",
    ),
    (
        r"stage(\d)\.stage_\d_block_(\d)\.stage_\d_block_\d_node_(\d+)_op\.(\w+)\."
        r"(?:conv_norm\.)*(.+)",
        lambda m: f"res{int(m[1]) + 2}.blocks.{m[2]}.ops.{m[3]}.{_CONVS.get(m[4], m[4])}.{m[5]}",
    ),
    (
        r"stage(\d)\.stage_\d_block_(\d)\.extra_norm_ac\.0\.(.+)",
        lambda m: f"res{int(m[1]) + 2}.blocks.{m[2]}.norm.{m[3]}",
    ),
    (r"fc\.(.+)", lambda m: f"fc.{m[1]}"),
)


def our_name(name: str) -> str:
    """This project's name of a tensor in the authors' checkpoint."""
    for pattern, rename in _PATTERNS:
        if match := re.fullmatch(pattern, name):
            return rename(match)
    raise KeyError(name)


def fixed_value(name: str, shape: list[int]) -> torch.Tensor:
    """The record's deterministic weight for a tensor of the authors' checkpoint."""
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("weight") and len(shape) == 4:
        value = r.standard_normal(shape) * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    elif name.endswith("running_var"):
        value = r.uniform(0.5, 1.5, shape) * (100 if "extra_norm_ac" in name else 1)
    elif name.endswith("running_mean"):
        value = r.standard_normal(shape) * 0.1
    elif name.endswith("weight") and len(shape) == 2:
        value = r.standard_normal(shape) * 0.01
    elif name.endswith("weight"):
        value = r.uniform(0.5, 1.5, shape) * (0.2 if "conv_norm_3" in name else 1)
    else:
        value = r.standard_normal(shape) * 0.1
    return torch.from_numpy(value)
