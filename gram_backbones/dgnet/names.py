"""What the tensors of DG-Net's base networks are called in timm and Detectron2.

Our names are torchvision's.
"""

from __future__ import annotations

import re
from itertools import accumulate

from ..renaming import substitute, unchanged

_MOBILENET_PARTS = {
    1: {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"},
    2: {
        "conv.0.0": "conv_pw",
        "conv.0.1": "bn1",
        "conv.1.0": "conv_dw",
        "conv.1.1": "bn2",
        "conv.2": "conv_pwl",
        "conv.3": "bn3",
    },
}
# Blocks of each stage (Table 2 of the MobileNetV2 paper) as offsets in torchvision's `features`.
_MOBILENET_STARTS = [0, *accumulate((1, 2, 3, 4, 3, 3, 1))]


def _timm_mobilenet_block(match: re.Match) -> str:
    index = int(match[1]) - 1
    stage = max(s for s, start in enumerate(_MOBILENET_STARTS) if start <= index)
    part = _MOBILENET_PARTS[1 if index == 0 else 2][match[2]]
    return f"blocks.{stage}.{index - _MOBILENET_STARTS[stage]}.{part}."


timm_mobilenet = substitute(
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.18\.0\.", "conv_head."),
    (r"^features\.18\.1\.", "bn2."),
    (r"^features\.(\d+)\.(conv\.[01]\.[01]|conv\.[123])\.", _timm_mobilenet_block),
    (r"^classifier\.1\.", "classifier."),
)

_REGNET_PARTS = {
    "proj.0": "downsample.conv",
    "proj.1": "downsample.bn",
    **{f"f.{letter}.0": f"conv{i}.conv" for i, letter in enumerate("abc", 1)},
    **{f"f.{letter}.1": f"conv{i}.bn" for i, letter in enumerate("abc", 1)},
    "f.se.fc1": "se.fc1",
    "f.se.fc2": "se.fc2",
}


def _timm_regnet_block(match: re.Match) -> str:
    return f"s{match[1]}.b{int(match[2]) + 1}.{_REGNET_PARTS[match[3]]}."


timm_regnet = substitute(
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (
        r"^trunk_output\.block(\d)\.block\d-(\d+)\.(proj\.[01]|f\.[abc]\.[01]|f\.se\.fc[12])\.",
        _timm_regnet_block,
    ),
    (r"^fc\.", "head.fc."),
)

# Detectron2's ResNets, named as its script for torchvision's weights does.
detectron2_resnet = substitute(
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
    (r"^fc\.", "stem.fc."),
)


_OURS = {"own": unchanged, "torchvision": unchanged}
# By kind of base network.
NAMINGS = {
    "resnet": {**_OURS, "timm": unchanged, "detectron2": detectron2_resnet},
    "regnet": {**_OURS, "timm": timm_regnet},
    "mobilenet_v2": {**_OURS, "timm": timm_mobilenet},
}
