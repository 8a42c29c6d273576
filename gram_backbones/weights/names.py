"""What tensors are called elsewhere: the other names of this project's tensors.

Every naming is a function from our name to the foreign one, so that it can be written as well as
read; reading looks our names up. One is read only, because its source leaves parts of it open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

Rename = Callable[[str], str]

# What may stand before a backbone's names: of data parallelism, of the authors' checkpoints, of
# detectors (Detectron2 with and without FPN, MMDetection) and of training scripts.
PREFIXES = (
    "",
    "module.",
    "network.",
    "module.network.",
    "backbone.bottom_up.",
    "backbone.",
    "module.backbone.bottom_up.",
    "module.backbone.",
    "model.",
    "_orig_mod.",
)
# Where a C4 detector keeps the last stage: Detectron2, MMDetection.
HEAD_PREFIXES = ("roi_heads.res5.", "roi_head.shared_head.")


def _substitute(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Rename:
    """The first rule whose pattern begins the name rewrites it."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            new, count = pattern.subn(replacement, name, count=1)
            if count:
                return new
        return name

    return rename


def same(name: str) -> str:
    """Our own names, which for DG-Net's base networks are torchvision's."""
    return name


_AUTHORS_CONVS = {
    "conv1": "conv_norm_ac_1.conv_norm.conv_norm",
    "conv2": "conv_norm_ac_2.conv_norm.conv_norm",
    "conv3": "conv_norm_3.conv_norm",
    "shortcut": "shortcut.conv_norm",
}


def _authors_node(match: re.Match) -> str:
    stage, block, node, conv = int(match[1]) - 2, match[2], match[3], _AUTHORS_CONVS[match[4]]
    name = f"stage_{stage}_block_{block}"
    return f"stage{stage}.{name}.{name}_node_{node}_op.{conv}."


def _authors_norm(match: re.Match) -> str:
    stage = int(match[1]) - 2
    return f"stage{stage}.stage_{stage}_block_{match[2]}.extra_norm_ac.0."


def _authors_transition(match: re.Match) -> str:
    stage = int(match[1]) - 2
    return f"stage{stage}.stage_{stage}_block_0_transition.0.conv_norm.conv_norm."


# The first naming of the AOGNet authors' checkpoints.
authors = _substitute(
    (r"^stem\.(\d)\.", r"stem.\1.conv_norm.conv_norm."),
    (r"^res(\d)\.transition\.0\.", _authors_transition),
    (r"^res(\d)\.blocks\.(\d+)\.ops\.(\d+)\.(\w+)\.", _authors_node),
    (r"^res(\d)\.blocks\.(\d+)\.norm\.", _authors_norm),
)

_NODE = re.compile(r"layer(\d)\..*?stage_\d_block_(\d+)_node_(\d+)_op\.(.+)\.(\w+)")
_TRANSITION = re.compile(r"layer(\d)\..*?transition\.0\.(conv|bn)\.(\w+)")
_STEM = re.compile(r"stem\.conv1\.(\d)\.(conv|bn)\.(\w+)")
_PART = {"conv": "0", "bn": "1"}
_OPS = {
    **{f"conv{i}": f"conv{i}.0" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.1" for i in (1, 2, 3)},
    "downsample.conv": "shortcut.0",
    "downsample.bn": "shortcut.1",
}


def is_second_naming(names: Iterable[str]) -> bool:
    """Whether names are of the second release of the authors' weights."""
    return any(_NODE.search(name) for name in names)


def from_second_naming(names: Iterable[str]) -> dict[str, str]:
    """Our names for those of the second release, where they are recognised.

    The norm at a block's end goes by its place: it is what else stands below ``layer{s}``, one
    module a block, in order.
    """
    ours, norms = {}, defaultdict(list)
    for name in names:
        if match := _NODE.search(name):
            stage, block, node, op, leaf = match.groups()
            if op in _OPS:
                block = int(block) - 1
                ours[name] = f"res{int(stage) + 1}.blocks.{block}.ops.{node}.{_OPS[op]}.{leaf}"
        elif match := _TRANSITION.search(name):
            ours[name] = f"res{int(match[1]) + 1}.transition.0.{_PART[match[2]]}.{match[3]}"
        elif match := _STEM.search(name):
            ours[name] = f"stem.{match[1]}.{_PART[match[2]]}.{match[3]}"
        elif match := re.search(r"\bfc\.(\w+)$", name):
            ours[name] = f"fc.{match[1]}"
        elif match := re.search(r"layer(\d)\.(?:.+\.)?(\w+)$", name):
            parent = name.rsplit(".", 1)[0]
            stage = int(match[1]) + 1
            if parent not in norms[stage]:
                norms[stage].append(parent)
            block = norms[stage].index(parent)
            ours[name] = f"res{stage}.blocks.{block}.norm.{match[2]}"
    return ours


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


timm_mobilenet = _substitute(
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


timm_regnet = _substitute(
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (
        r"^trunk_output\.block(\d)\.block\d-(\d+)\.(proj\.[01]|f\.[abc]\.[01]|f\.se\.fc[12])\.",
        _timm_regnet_block,
    ),
    (r"^fc\.", "head.fc."),
)

# Detectron2's ResNets, named as its script for torchvision's weights does.
detectron2_resnet = _substitute(
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
    (r"^fc\.", "stem.fc."),
)


_NAMINGS: dict[str, dict[str, Rename]] = {
    "aognet": {"own": same, "authors": authors},
    "resnet": {"own": same, "torchvision": same, "timm": same, "detectron2": detectron2_resnet},
    "regnet": {"own": same, "torchvision": same, "timm": timm_regnet},
    "mobilenet": {"own": same, "torchvision": same, "timm": timm_mobilenet},
}
_MARKS = {"trunk_output.": "regnet", "features.": "mobilenet", "layer": "resnet"}


def namings(ours: Iterable[str]) -> dict[str, Rename]:
    """By name, the namings in which a network can be written whose tensors we call ``ours``."""
    ours = list(ours)
    kinds = (kind for mark, kind in _MARKS.items() if any(name.startswith(mark) for name in ours))
    return _NAMINGS[next(kinds, "aognet")]


def find_names(ours: Iterable[str], found: Iterable[str]) -> tuple[str, str, dict[str, str]]:
    """The naming and prefix under which most of a network's tensors are found.

    Args:
        ours: our names of all tensors of the whole network.
        found: names in a file, in its order.

    Returns:
        What the naming is called, the prefix, and for each name in the file that has one of ours,
        that one.
    """
    ours, found = dict.fromkeys(ours), list(found)
    if is_second_naming(found):
        second = from_second_naming(found)
        return "authors", "", {name: mine for name, mine in second.items() if mine in ours}
    found = dict.fromkeys(found)
    best: tuple[str, str, dict[str, str]] = ("own", "", {})
    for naming, rename in namings(ours).items():
        for prefix in PREFIXES:
            names = {name: mine for mine in ours if (name := prefix + rename(mine)) in found}
            if prefix.endswith("backbone."):
                names |= _head_names(found, ours, prefix.removesuffix("backbone."))
            if len(names) > len(best[2]):
                best = naming, prefix, names
    return best


def _head_names(found: Iterable[str], ours: Mapping[str, None], prefix: str) -> dict[str, str]:
    """The last stage of a C4 detector, which stands in its RoI heads under our own names."""
    names = {}
    for name in found:
        for head in HEAD_PREFIXES:
            if name.startswith(prefix + head):
                part = name.removeprefix(prefix + head)
                # AOGNet's stage is the head's module itself, DG-Net's stands inside it.
                mine = next((n for n in (part, f"res5.{part}") if n in ours), None)
                names |= {name: mine} if mine else {}
    return names
