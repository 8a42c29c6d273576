"""Configs with mistakes in them: an error names the key before anything is built."""

import copy

import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmengine.config import Config

import gram_backbones.mmdet  # noqa: F401  registers the backbones
from gram_backbones.config_folders import find_config
from gram_backbones.mmdet.checks import check_changes, check_values


@pytest.fixture(scope="module")
def config():
    return Config.fromfile(find_config("mask-rcnn_aognet-12m_fpn_1x_coco", ["mmdet"]))


def test_what_is_possible_passes(config):
    check_changes(config, {"model.neck.in_channels": "auto", "model.neck.out_channels": 128})
    check_changes(config, {"val_evaluator.metric": "bbox"})
    check_values(config)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    (
        ("model.neck.out_channels", "wide", "to 'wide'; allowed is a number, such as 256"),
        ("model.neck.in_channels", 640, r"in_channels to 640; allowed is a list, such as \["),
        ("model.neck.in_channels", [56, 120], r"in_channels, for .*out_indices, is \[56, 120\]"),
        ("model.neck.num_outs", 0, "num_outs is 0; allowed are whole numbers from 1"),
        ("train_dataloader.batch_size", 1.5, "batch_size is 1.5; allowed are whole numbers"),
        ("optim_wrapper.optimizer.lr", -0.1, "optimizer.lr is -0.1; allowed are numbers from 0"),
        ("model.rpn_head.in_channels", 32, "rpn_head.in_channels is 32; allowed is 256"),
        ("model.roi_head.bbox_head.in_channels", 32, "bbox_head.in_channels is 32; allowed is 256"),
        ("model.rpn_head.anchor_generator.strides", [4, 8], "has 2 strides; the neck has 5 maps"),
        ("model.roi_head.bbox_roi_extractor.featmap_strides", [], "has 0 strides; the neck has 5"),
    ),
)
def test_impossible_values_are_named_by_their_keys(config, key, value, sentence):
    cfg = copy.deepcopy(config)
    with pytest.raises(ValueError, match=sentence):
        check_changes(cfg, {key: value})
        cfg.merge_from_dict({key: value})
        check_values(cfg)
