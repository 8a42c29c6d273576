"""Train a detector. The config's kind says by which framework.

  {prog} mask_rcnn_aognet40m_fpn_1x --num-gpus 8                       Detectron2
  {prog} mask-rcnn_aognet-40m_fpn_1x_coco --data-root coco             MMDetection

CONFIG is a file, .yaml or .py, or the name of a shipped config, as gram-backbones configs --names
prints them.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import d2, mmdet, setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train by the framework of the config."""
    parsers = {"Detectron2": d2.make_parser, "MMDetection": mmdet.train_parser}
    config, rest = setup.split_config(argv, prog, __doc__, parsers)
    if setup.is_mmdet(config, prog):
        mmdet.train([config, *rest], prog)
    else:
        d2.main(["--config", config, *rest], prog)
