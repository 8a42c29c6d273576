"""Names of AOGNet's tensors in the authors' checkpoints, for both of their releases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from ..renaming import substitute, unchanged

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
authors = substitute(
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

    The norms at the ends of blocks are identified by their order: every other module below
    ``layer{s}`` is such a norm, one per block.
    """
    ours: dict[str, str] = {}
    norms: defaultdict[int, list[str]] = defaultdict(list)
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


NAMINGS = {"own": unchanged, "authors": authors}
