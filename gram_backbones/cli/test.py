"""Evaluate a trained detector. The config's kind says by which framework.

  {prog} mask_rcnn_aognet40m_fpn_1x output/model_final.pth             Detectron2
  {prog} mask-rcnn_aognet-40m_fpn_1x_coco work_dirs/…/epoch_12.pth     MMDetection

CONFIG is a file, .yaml or .py, or the name of a shipped config, as gram-backbones configs --names
prints them. Detectron2 also takes --resume in place of the weight file: the last checkpoint in
OUTPUT_DIR.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import d2, mmdet, setup


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluate by the framework of the config."""
    parsers = {"Detectron2": d2.make_parser, "MMDetection": mmdet.test_parser}
    config, rest = setup.split_config(argv, prog, __doc__, parsers)
    if setup.is_mmdet(config, prog):
        mmdet.test([config, *rest], prog)
        return
    weights = []
    if rest and not rest[0].startswith("-") and not rest[0].partition(".")[0].isupper():
        weights = ["MODEL.WEIGHTS", rest.pop(0)]  # and not a KEY of the config
    d2.main(["--config", config, "--eval-only", *rest, *weights], prog)
