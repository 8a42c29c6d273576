"""``in_channels="auto"``: the channels that our configs give by hand, and a run's own config."""

import copy
import doctest
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from gram_backbones.mmdet import GramRunner, channels, fill_channels
from tests.conftest import ROOT

FOLDER = ROOT / "mmdet_configs"
# With FPN, with C4 heads, with one map to a list, with a list of heads, with DG-Net.
CONFIGS = (
    "mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py",
    "mask_rcnn/mask-rcnn_aognet-12m_c4_1x_coco.py",
    "detr/detr_aognet-12m_8xb2-150e_coco.py",
    "cascade_rcnn/cascade-mask-rcnn_aognet-40m_fpn_1x_coco.py",
    "atss/atss_dgnet-r50_fpn_1x_coco.py",
)


def asked(value):
    """A config that asks for every number of input channels instead of giving it."""
    if isinstance(value, dict):
        autos = {"in_channels": ["auto"] if isinstance(value.get("in_channels"), list) else "auto"}
        rest = {key: asked(item) for key, item in value.items()}
        return {**rest, **(autos if "in_channels" in value else {})}
    return [asked(item) for item in value] if isinstance(value, list) else value


@pytest.mark.grid
@pytest.mark.parametrize("name", CONFIGS)
def test_auto_gives_what_the_configs_give_by_hand(name):
    model = Config.fromfile(FOLDER / name).model.to_dict()
    before = copy.deepcopy(model)
    question = asked(model)
    assert question != model
    assert fill_channels(question) == before
    assert fill_channels(model) is model and model == before


def test_a_detector_of_ours_fills_itself_and_a_detector_within_a_model_is_filled():
    model = Config.fromfile(FOLDER / "atss/atss_dgnet-r50_fpn_1x_coco.py").model.to_dict()
    model["backbone"] |= dict(variant="dgnet_r18", out_indices=(1, 2, 3))
    model["neck"] |= dict(in_channels="auto", start_level=0)
    assert MODELS.build(copy.deepcopy(model)).neck.in_channels == [128, 256, 512]
    teacher = fill_channels(dict(type="SoftTeacher", detector=model, semi_test_cfg=dict()))
    assert teacher["detector"]["neck"]["in_channels"] == [128, 256, 512]


def test_several_necks_read_each_other():
    necks = [dict(type="FPN", in_channels="auto", out_channels=64, num_outs=5)]
    necks.append(dict(type="BFP", in_channels="auto", num_levels=5))
    model = dict(backbone=dict(type="AOGNet", variant="aognet_4m"), neck=necks)
    assert [n["in_channels"] for n in fill_channels(model)["neck"]] == [[56, 120, 256, 640], 64]
    model["bbox_head"] = dict(type="RetinaHead", in_channels="auto")
    with pytest.raises(ValueError, match="RetinaHead is 'auto', but what it reads has no out_ch"):
        fill_channels(model)


def test_other_backbones_are_refused_by_name():
    model = dict(backbone=dict(type="ResNet", depth=18), neck=dict(type="FPN", in_channels="auto"))
    with pytest.raises(ValueError, match="for the backbone 'ResNet'; allowed are the backbones of"):
        fill_channels(model)


def test_a_run_builds_and_keeps_the_filled_config(tmp_path):
    name = "mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py"
    cfg = Config.fromfile(FOLDER / name)
    cfg.merge_from_dict({"model.backbone.variant": "aognet_4m", "work_dir": str(tmp_path)})
    cfg.model.neck.in_channels = "auto"
    for key in [k for k in cfg if k.startswith(("train_", "val_", "test_")) and k != "test_cfg"]:
        cfg[key] = None
    cfg.test_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    runner = GramRunner.from_cfg(cfg)
    assert runner.model.neck.in_channels == [56, 120, 256, 640]
    assert cfg.model.neck.in_channels == "auto"  # the caller's own
    runner.dump_config()
    written = Config.fromfile(next(Path(tmp_path).rglob("*.py")))
    assert written.model.neck.in_channels == [56, 120, 256, 640]


def test_the_example():
    assert doctest.testmod(channels) == (0, 3)


def test_another_default_scope_does_not_matter():
    neck = dict(type="FPN", in_channels="auto", out_channels=8, num_outs=5)
    backbone = dict(type="AOGNet", variant="aognet_4m")
    with DefaultScope.overwrite_default_scope("mmengine"):
        filled = fill_channels(dict(backbone=backbone, neck=neck))
    assert filled["neck"]["in_channels"][-1] == 640
