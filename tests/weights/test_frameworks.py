"""One loader in both frameworks: round trips from foreign names, bad files, plain loaders."""

import copy
import logging

import pytest
import torch
from torchvision import models

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import timm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from mmdet.registry import MODELS
from mmengine.runner import load_checkpoint

import gram_backbones.d2 as d2
import gram_backbones.mmdet  # noqa: F401 (registers)
from gram_backbones import create_model
from gram_backbones.aognet.names import authors
from gram_backbones.dgnet.names import detectron2_resnet
from gram_backbones.weights.convert import convert_weights
from tests.d2.test_backbones import small_config
from tests.weights.test_files import DAMAGES, damage, server  # noqa: F401 (server is a fixture)
from tests.weights.test_loading import TINY, second_names, settled

# Our model, the network that the file is of, its modules that give res2 to res5, and its file's
# names.
RES = ["res2", "res3", "res4", "res5"]
LAYERS = ["layer1", "layer2", "layer3", "layer4"]
SOURCES = {
    "aognet_12m first naming": ("aognet_12m_released", None, RES, authors),
    "aognet_12m second naming": ("aognet_12m_released", None, RES, second_names),
    "resnet50": ("dgnet_r50", models.resnet50, LAYERS, detectron2_resnet),
    "resnext50": ("dgnet_x50", models.resnext50_32x4d, LAYERS, str),
    "mobilenetv2": (
        "dgnet_mobilenet_v2",
        lambda: timm.create_model("mobilenetv2_100"),
        ["blocks.1", "blocks.2", "blocks.4", "blocks.6"],
        str,
    ),
    "regnetx": (
        "dgnet_regnetx_600m",
        lambda: timm.create_model("regnetx_006"),
        ["s1", "s2", "s3", "s4"],
        str,
    ),
}


def config_for(name, model):
    """A Detectron2 config with the model; a DG-Net with its base network's edges alone."""
    family = "aognet" if model.startswith("aognet") else "dgnet"
    cfg = d2.get_config(name.format(family="aognet12m" if family == "aognet" else "dgnet_r50"))
    cfg.MODEL.DEVICE = "cpu"
    if family == "aognet":
        cfg.MODEL.AOGNET.VARIANT = model
    else:
        cfg.MODEL.DGNET.VARIANT, cfg.MODEL.DGNET.EDGES = model, "chain"
        cfg.MODEL.DGNET.START_AS_BASE = False
    return cfg


def mmdet_backbone(model, **kwargs):
    if model.startswith("dgnet"):
        kwargs["edges"] = "chain"
    type_ = "AOGNet" if model.startswith("aognet") else "DGNet"
    return MODELS.build(dict(type=type_, variant=model, **kwargs))


def features_of(source, modules, x):
    seen = []
    for module in modules:
        source.get_submodule(module).register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        source(x)
    return seen


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("case", SOURCES)
def test_round_trip_into_both_frameworks(case, tmp_path, caplog):
    model, build, modules, rename = SOURCES[case]
    source = settled(build() if build else create_model(model))
    foreign, file = tmp_path / "foreign.pth", tmp_path / "converted.pth"
    torch.save({rename(n): v for n, v in source.state_dict().items()}, foreign)
    convert_weights(foreign, file, model)
    x = torch.randn(2, 3, 64, 96)
    wanted = features_of(source, modules, x)

    detector = build_model(config_for("faster_rcnn_{family}_fpn_1x", model)).eval()
    with caplog.at_level(logging.INFO):
        d2.GramCheckpointer(detector).load(str(file))
    own = detector.backbone.bottom_up.state_dict()
    assert f"loaded {len(own)} of {len(own)} tensors from {file}" in caplog.text
    with torch.no_grad():
        first = detector.backbone.bottom_up(x).values()
    backbone = mmdet_backbone(model, init_cfg=dict(type="Pretrained", checkpoint=str(file)))
    backbone.init_weights()
    with torch.no_grad():
        second = backbone.eval()(x)
    for features in (first, second):
        for found, feature in zip(features, wanted, strict=True):
            assert (found - feature).abs().max() <= 1e-6 * feature.abs().max()


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("model", ("aognet_4m", "dgnet_r18"))
def test_converted_files_load_in_plain_detectron2_and_plain_mmengine(model, tmp_path):
    source = settled(create_model(model, **({"edges": "chain"} if "dg" in model else {})))
    torch.save(source.state_dict(), tmp_path / "source.pth")
    own = source.state_dict()

    def converted(layout):
        file = tmp_path / f"{layout}.pth"
        convert_weights(tmp_path / "source.pth", file, model, layout=layout)
        return str(file)

    def check(module, prefix=""):
        for name, value in module.state_dict().items():
            assert torch.equal(value, own[name if name in own else prefix + name]), name

    fpn = build_model(config_for("faster_rcnn_{family}_fpn_1x", model))
    DetectionCheckpointer(fpn).load(converted("d2-fpn"))
    check(fpn.backbone.bottom_up)
    c4 = build_model(config_for("mask_rcnn_{family}_c4_1x", model))
    DetectionCheckpointer(c4).load(converted("d2-c4"))
    check(c4.backbone)
    check(c4.roi_heads.res5, "res5.")
    backbone = mmdet_backbone(model)
    load_checkpoint(backbone, converted("backbone"), strict=False, logger="silent")
    check(backbone)
    kind = "AOGStage" if model.startswith("aognet") else "DGStage"
    edges = {"edges": "chain"} if "dg" in model else {}
    stage = MODELS.build(dict(type=kind, variant=model, **edges))
    parts = {"backbone": mmdet_backbone(model, out_indices=(2,)), "roi_head": torch.nn.Module()}
    detector = torch.nn.ModuleDict(parts)
    detector["roi_head"].shared_head = stage
    load_checkpoint(detector, converted("mmdet-c4"), strict=True)
    check(detector["backbone"])
    check(stage, "res5.")


@pytest.mark.parametrize(
    "kind",
    [k if k == "hostile" else pytest.param(k, marks=pytest.mark.slow) for k in DAMAGES],
)
def test_a_bad_file_is_refused_in_both_frameworks_and_changes_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, says = damage(kind, tmp_path)
    detector = build_model(small_config("demo_mask_rcnn_aognet4m_fpn"))
    backbone = MODELS.build(
        dict(type="AOGNet", variant=TINY, init_cfg=dict(type="Pretrained", checkpoint=str(file)))
    )
    for model, load in (
        (detector, lambda: d2.GramCheckpointer(detector).load(str(file))),
        (backbone, backbone.init_weights),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(d2.WeightError, match=says):
            load()
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_detector_s_file_fills_all_of_a_detector_or_is_refused(tmp_path, caplog):
    cfg = small_config("mask_rcnn_aognet12m_c4_1x")
    source, target = build_model(cfg), build_model(cfg)
    torch.save({"model": source.state_dict()}, tmp_path / "model.pth")
    d2.GramCheckpointer(target).load(str(tmp_path / "model.pth"))
    state = source.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in target.state_dict().items())
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3  # other classes: the rest is taken, and the log names them
    d2.GramCheckpointer(build_model(cfg)).load(str(tmp_path / "model.pth"))
    assert "box_predictor.cls_score" in caplog.text
    del state["roi_heads.mask_head.deconv.weight"]
    torch.save({"model": state}, tmp_path / "model.pth")
    with pytest.raises(d2.WeightError, match="roi_heads.mask_head.deconv.weight"):
        d2.GramCheckpointer(target).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("damage", ("nan", "width"))
def test_a_detector_s_heads_are_checked_as_well(damage, tmp_path):
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")
    state = build_model(cfg).state_dict()
    name = "roi_heads.box_head.fc1.weight"
    if damage == "nan":
        state[name][0] = float("nan")
    else:
        name, cfg.MODEL.FPN.OUT_CHANNELS = "backbone.fpn_lateral2.weight", 24
    torch.save({"model": state}, tmp_path / "model.pth")
    says = f"not finite: {name}" if damage == "nan" else "of another shape: backbone.fpn"
    with pytest.raises(d2.WeightError, match=says):
        d2.GramCheckpointer(build_model(cfg)).load(str(tmp_path / "model.pth"))


def test_a_run_of_another_model_is_not_resumed(tmp_path):
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")
    d2.GramCheckpointer(build_model(cfg), str(tmp_path)).save("model_0000001")
    cfg.MODEL.AOGNET.CHANNELS = [8, 16, 24, 40, 48]
    checkpointer = d2.GramCheckpointer(build_model(cfg), str(tmp_path))
    with pytest.raises(d2.WeightError, match="to resume from is of another model"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.grid
@pytest.mark.parametrize("kind", ("Pretrained", "mmengine.Pretrained", "mmdet.Pretrained"))
def test_init_cfg_is_strict_however_it_is_spelled(kind, tmp_path):
    torch.save({"unrelated": torch.zeros(1)}, tmp_path / "f.pth")
    init_cfg = dict(type=kind, checkpoint=str(tmp_path / "f.pth"))
    backbone = MODELS.build(dict(type="AOGNet", variant=TINY, init_cfg=init_cfg))
    with pytest.raises(d2.WeightError, match="stem.0.0.weight"):
        backbone.init_weights()


def test_an_mmdetection_detector_s_backbone_starts_a_detectron2_detector(tmp_path):
    source = settled(create_model("aognet_4m", features_only=True))
    tensors = {f"backbone.{n}": v for n, v in source.state_dict().items()}
    tensors["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    meta = {"mmengine_version": "0.10", "dataset_meta": {"classes": ("a",)}}
    torch.save({"state_dict": tensors, "meta": meta}, tmp_path / "epoch_12.pth")
    cfg = d2.get_config("demo_mask_rcnn_aognet4m_fpn")
    cfg.MODEL.DEVICE = "cpu"
    detector = build_model(cfg)
    d2.GramCheckpointer(detector).load(str(tmp_path / "epoch_12.pth"))
    own = source.state_dict()
    state = detector.backbone.bottom_up.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state.items())


def test_an_address_fills_a_detectron2_detector(server, caplog):  # noqa: F811
    digest, requests = server
    detector = build_model(small_config("demo_mask_rcnn_aognet4m_fpn"))
    address = f"https://host/w.safetensors#sha256={digest}"
    with caplog.at_level(logging.INFO):
        d2.GramCheckpointer(detector).load(address)
    assert f"tensors from {address}" in caplog.text and len(requests) == 1
