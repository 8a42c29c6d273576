"""The authors' released AOGNet-12M as figures: fixed weights for its tensors."""

import zlib

import numpy as np
import torch


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
