"""The Detectron2 adapter: names, configs, freezing, heads, errors."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.model_zoo import get_config as get_lazy_config
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

import gram_backbones.d2 as gram
from gram_backbones.aognet import VARIANTS, AOGStage
from gram_backbones.dgnet import VARIANTS as DG_VARIANTS
from gram_backbones.flops import count_parameters

CONFIGS = sorted(p.stem for p in Path(gram.get_config_file("Base-1x")).parent.glob("*.yaml"))
LEAVES = [name for name in CONFIGS if not name.startswith("Base")]
# Detectors of the paper's Table 4 with Detectron2's heads, in millions, counted with NORM: BN.
TOTALS = {
    "mask_rcnn_aognet12m_fpn_1x": 31.78,
    "mask_rcnn_aognet40m_fpn_1x": 59.42,
    "mask_rcnn_aognet60m_fpn_1x": 80.09,
    "mask_rcnn_aognet12m_c4_1x": 15.03,
    "mask_rcnn_aognet40m_c4_1x": 48.06,
}
# One per head; small widths keep them fast.
HEADS = (
    "mask_rcnn_aognet12m_fpn_1x",
    "mask_rcnn_aognet12m_c4_1x",
    "faster_rcnn_aognet12m_c4_1x",
    "retinanet_aognet40m_fpn_1x",
)


def small_config(name, **changes):
    """A shipped config with a small backbone and few proposals."""
    cfg = gram.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.AOGNET.CHANNELS = [8, 16, 24, 32, 48]
    cfg.MODEL.AOGNET.BLOCKS = [1, 1, 2, 1]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


@pytest.fixture(autouse=True)
def _event_storage():
    with EventStorage():  # Detectron2's losses log into it
        yield


def sample(size=(96, 128)):
    """One training image with two instances."""
    boxes = [[8.0, 8.0, 72.0, 72.0], [40.0, 30.0, 120.0, 90.0]]
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.tensor([1, 2])
    instances.gt_masks = PolygonMasks(
        [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    )
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def test_registered_names_and_a_second_import():
    names = (
        "build_aognet_backbone",
        "build_aognet_fpn_backbone",
        "build_retinanet_aognet_fpn_backbone",
        "build_dgnet_backbone",
        "build_dgnet_fpn_backbone",
        "build_retinanet_dgnet_fpn_backbone",
    )
    assert all(name in BACKBONE_REGISTRY for name in names)
    importlib.reload(gram)


def test_config_nodes_can_be_added_twice():
    cfg = get_cfg()
    gram.add_gram_backbones_config(cfg)
    cfg.MODEL.AOGNET.VARIANT = "aognet_4m"
    gram.add_gram_backbones_config(cfg)
    assert cfg.MODEL.AOGNET.VARIANT == "aognet_4m"


def test_an_unknown_config_is_named():
    with pytest.raises(ValueError, match="aognet13m.*mask_rcnn_aognet12m_c4_1x"):
        gram.get_config("mask_rcnn_aognet13m_fpn_1x")


def test_the_set_of_configs():
    wanted = {
        f"{task}_rcnn_aognet{size}_{neck}_1x"
        for task in ("mask", "faster")
        for size in ("12m", "40m", "60m")
        for neck in ("fpn", "c4")
    }
    wanted |= {"retinanet_aognet40m_fpn_1x", "demo_mask_rcnn_aognet4m_fpn"}
    wanted |= {f"faster_rcnn_dgnet_{base}_fpn_1x" for base in ("r50", "r101", "x50")}
    wanted |= {f"mask_rcnn_dgnet_{b}_{n}_1x" for b in ("r50", "r101") for n in ("fpn", "c4")}
    assert wanted <= set(LEAVES)


@pytest.mark.grid
@pytest.mark.parametrize("name", LEAVES)
def test_configs_build_and_say_what_their_name_says(name):
    cfg = gram.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    is_dgnet = "dgnet" in name
    node = cfg.MODEL.DGNET if is_dgnet else cfg.MODEL.AOGNET
    preprocessing = (DG_VARIANTS if is_dgnet else VARIANTS)[node.VARIANT].preprocessing
    assert tuple(cfg.MODEL.PIXEL_MEAN) == preprocessing.mean
    assert tuple(cfg.MODEL.PIXEL_STD) == preprocessing.std
    assert cfg.INPUT.FORMAT == preprocessing.channel_order
    assert model.backbone.size_divisibility == (16 if "_c4_" in name else 32)
    if name.startswith("demo"):
        return
    if is_dgnet:
        assert name.split("rcnn_")[1].startswith(node.VARIANT) and node.START_AS_BASE
    else:
        size = name.split("aognet")[1].split("_")[0]
        assert node.VARIANT == f"aognet_{size}" + ("" if size == "60m" else "_released")
    assert node.NORM == "FrozenBN" and cfg.MODEL.BACKBONE.FREEZE_AT == 2
    assert cfg.MODEL.MASK_ON == name.startswith("mask")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.SOLVER.BASE_LR == (0.01 if "retinanet" in name else 0.02)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))


@pytest.mark.grid
@pytest.mark.parametrize("name", TOTALS)
def test_totals_of_table_4(name):
    cfg = gram.get_config(name)
    cfg.MODEL.AOGNET.NORM = "BN"
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert count_parameters(model) / 1e6 == pytest.approx(TOTALS[name], abs=0.02)


@pytest.mark.grid
@pytest.mark.parametrize("norm", ("BN", "FrozenBN", "GN"))
@pytest.mark.parametrize("freeze_at", (0, 2))
@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_reaches_every_trainable_parameter(name, freeze_at, norm):
    cfg = small_config(name, **{"MODEL.AOGNET.NORM": norm, "MODEL.BACKBONE.FREEZE_AT": freeze_at})
    model = build_model(cfg).train()
    losses = model([sample(), sample()])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    backbone = "backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."
    stages = tuple(backbone + stage for stage in ("stem.", "res2.")[:freeze_at])
    assert frozen == {n for n, _ in model.named_parameters() if stages and n.startswith(stages)}
    model.eval()
    with torch.no_grad():
        result = model([sample()])[0]["instances"]
    assert result.image_size == (96, 128)


@pytest.mark.grid
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_shape_is_what_comes_out(variant):
    names = ("stem", "res2", "res4")
    backbone = gram.AOGNetBackbone(variant, out_features=names, norm="BN", freeze_at=0).eval()
    shapes = backbone.output_shape()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert set(features) == set(shapes) == set(names)
    for name, feature in features.items():
        stride = shapes[name].stride
        assert feature.shape == (1, shapes[name].channels, 64 // stride, 96 // stride)
    assert backbone.size_divisibility == (4 if variant.startswith("aognet_cifar") else 16)
    assert not hasattr(backbone, "res5")


def test_frozen_bn_holds_statistics_and_affine_as_buffers():
    backbone = gram.AOGNetBackbone("aognet_4m", norm="FrozenBN", freeze_at=0)
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms and not [p for m in norms for p in m.parameters()]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.slow
def test_fresh_frozen_norms_keep_features_in_bounds():
    """They normalise nothing; sums over the grammar once grew to 1e8 and training diverged."""
    for variant, row in VARIANTS.items():
        names = ("res2", "res3", "res4", "res5")[: len(row.words)]
        backbone = gram.AOGNetBackbone(variant, out_features=names).eval()
        with torch.no_grad():
            features = backbone(torch.randn(1, 3, 64, 64))
        assert all(0.01 < feature.std() < 100 for feature in features.values())


def test_frozen_parts_do_not_move_in_training():
    cfg = small_config(HEADS[0], **{"MODEL.AOGNET.NORM": "BN"})
    model = build_model(cfg).train()
    before = {n: t.clone() for n, t in model.backbone.bottom_up.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    sum(model([sample()]).values()).backward()
    optimizer.step()
    after = model.backbone.bottom_up.state_dict()
    changed = {n.split(".")[0] for n in after if not torch.equal(before[n], after[n])}
    assert changed == {"res3", "res4", "res5"}


def test_c4_applies_the_family_s_last_stage_to_regions():
    cfg = small_config("mask_rcnn_aognet12m_c4_1x", **{"MODEL.AOGNET.NORM": "BN"})
    model = build_model(cfg)
    assert isinstance(model.roi_heads.res5, AOGStage)
    assert not hasattr(model.backbone, "res5")
    regions = model.roi_heads.res5(torch.randn(3, 32, 14, 14))
    assert regions.shape == (3, 48, 7, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"MODEL.AOGNET.VARIANT": "aognet_13m"}, "aognet_13m.*aognet_12m"),
        ({"MODEL.AOGNET.OUT_FEATURES": ["res2", "res9"]}, "res9.*res5"),
        ({"MODEL.AOGNET.CHANNELS": [8, 16, 25, 32, 48]}, "25 output channels.*multiple of 2"),
        ({"MODEL.AOGNET.NORM": "XN"}, "XN.*FrozenBN"),
        ({"MODEL.BACKBONE.FREEZE_AT": 7}, "FREEZE_AT is 7; allowed are 0 to 5"),
        ({"MODEL.AOGNET.OUT_FEATURES": ["res2", "res3"]}, r"\['res4', 'res5'\]"),
        ({"MODEL.AOGNET.WORDS": [2, 4]}, "blocks"),
        ({"MODEL.AOGNET.PRUNING": ["keep"] * 4}, "keep_first"),
    ),
)
def test_a_bad_config_value_is_named_with_what_is_allowed(change, message):
    cfg = small_config(HEADS[0])
    for key, value in change.items():
        node = cfg
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = value
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)


def test_c4_heads_refuse_what_they_do_not_fit():
    cfg = small_config("mask_rcnn_aognet12m_c4_1x")
    shape = {"res4": ShapeSpec(channels=1024, stride=16)}
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with pytest.raises(ValueError, match="build_resnet_backbone.*build_aognet_backbone"):
        gram.GramRes5ROIHeads(cfg, shape)
    cfg.MODEL.BACKBONE.NAME = "build_aognet_backbone"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
    with pytest.raises(ValueError, match="res5.*res4"):
        gram.GramRes5ROIHeads(cfg, {"res5": ShapeSpec(channels=48, stride=32)})
    cfg = small_config("mask_rcnn_aognet12m_c4_1x")
    cfg.MODEL.AOGNET.OUT_FEATURES = ["res4", "res5"]
    with pytest.raises(ValueError, match="OUT_FEATURES include 'res5'"):
        build_model(cfg)


def test_features_go_by_name_in_detectron2():
    with pytest.raises(ValueError, match=r"\[0, 1\].*res2"):
        gram.AOGNetBackbone("aognet_4m", out_features=[0, 1])


def test_images_prepared_for_another_network_are_warned_about(caplog):
    cfg = small_config(HEADS[0])
    build_backbone(cfg)
    assert not caplog.text
    cfg.INPUT.FORMAT = "BGR"
    build_backbone(cfg)
    assert "BGR" in caplog.text and "INPUT.FORMAT" in caplog.text


def test_overrides_change_the_variant_s_row():
    cfg = small_config(HEADS[0])
    node = cfg.MODEL.AOGNET
    node.PRUNING = ["full", "full", "keep_last", "keep_first"]
    node.SCALE_LATERAL_SKIP, node.CONCAT_BY_ID = True, False
    graph = build_backbone(cfg).bottom_up.res3.blocks[0].graph
    assert graph.pruning is None and graph.scale_lateral_skip and not graph.concat_by_id


@pytest.mark.slow
def test_lazy_config_fpn():
    cfg = get_lazy_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    cfg.backbone.bottom_up = L(gram.AOGNetBackbone)(
        variant="aognet_4m", out_features=["res2", "res3", "res4", "res5"], norm="BN", freeze_at=2
    )
    model = instantiate(cfg)
    sum(model([sample()]).values()).backward()
    assert model.backbone.bottom_up.res5.blocks[0].norm.weight.grad is not None


@pytest.mark.slow
def test_lazy_config_c4():
    cfg = get_lazy_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py").model
    cfg.backbone = L(gram.AOGNetBackbone)(
        variant="aognet_4m", out_features=["res4"], norm="BN", freeze_at=2
    )
    cfg.roi_heads._target_ = gram.GramRes5ROIHeads
    cfg.roi_heads.res5 = L(AOGStage)(variant="aognet_4m", index=3)
    cfg.proposal_generator.head.in_channels = 256
    cfg.roi_heads.box_predictor.input_shape.channels = 640
    cfg.roi_heads.mask_head.input_shape.channels = 640
    model = instantiate(cfg)
    sum(model([sample()]).values()).backward()
    assert model.roi_heads.res5.blocks[0].norm.weight.grad is not None


def test_absent_detectron2_is_one_clear_sentence():
    code = "import sys; sys.modules['detectron2'] = None; import gram_backbones.d2"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "gram_backbones.d2 needs Detectron2" in last and "tools/setup.sh" in last


@pytest.mark.slow
def test_the_core_needs_no_framework():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('detectron2', 'mmdet', 'fvcore')));"
        "from gram_backbones import create_model; create_model('aognet_4m', features_only=True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [n for n in gram.__all__ if n.startswith("build_")])
def test_builders_are_found_by_their_names(name):
    """LazyConfig writes a function as its module and name."""
    builder = getattr(gram, name)
    assert pickle.loads(pickle.dumps(builder)) is builder is BACKBONE_REGISTRY.get(name)
