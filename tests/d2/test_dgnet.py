"""DG-Net under Detectron2: heads, freezing, padding, starting weights, overfitting."""

import json

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.model_zoo import get_config as get_lazy_config
from detectron2.modeling import build_backbone, build_model
from torchvision import models

import gram_backbones.d2 as gram
from gram_backbones import record_connectivity
from gram_backbones.dgnet import VARIANTS, DGStage
from gram_backbones.dgnet.graph import dynamic_graphs
from gram_backbones.dgnet.rewire import rewire
from tests.conftest import DATASETS, check_ended_well, needs_coco
from tests.d2.test_backbones import _event_storage, sample  # noqa: F401 (the fixture applies here too)
from tests.d2.test_engine import run_tool


def small_config(name, **changes):
    cfg = gram.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DGNET.VARIANT = "dgnet_r18"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


HEADS = ("faster_rcnn_dgnet_r50_fpn_1x", "mask_rcnn_dgnet_r50_fpn_1x", "mask_rcnn_dgnet_r50_c4_1x")


@pytest.mark.grid
@pytest.mark.parametrize("edges", ("dynamic", "static", "chain"))
@pytest.mark.parametrize("freeze_at", (0, 2))
@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_reaches_every_trainable_parameter(name, freeze_at, edges):
    cfg = small_config(name, **{"MODEL.BACKBONE.FREEZE_AT": freeze_at, "MODEL.DGNET.EDGES": edges})
    model = build_model(cfg).train()
    losses = model([sample(), sample((64, 96))])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
    frozen = {n for n, p in bottom_up.named_parameters() if not p.requires_grad}
    fixed = ("conv1.", "bn1.", "layer1.", "graphs.0.") if freeze_at else ("none",)
    assert frozen == {n for n, _ in bottom_up.named_parameters() if n.startswith(fixed)}
    with torch.no_grad():
        assert model.eval()([sample()])[0]["instances"].image_size == (96, 128)


def test_the_cifar_network_is_a_backbone_of_three_stages():
    names = ("stem", "res2", "res4")
    backbone = gram.DGNetBackbone("dgnet_cifar_r20", out_features=names, norm="BN").eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    for name, shape in backbone.output_shape().items():
        assert features[name].shape[2:] == (64 // shape.stride, 96 // shape.stride)
    assert backbone.size_divisibility == 4
    cfg = small_config(HEADS[2])
    cfg.MODEL.DGNET.VARIANT = "dgnet_cifar_r20"
    with pytest.raises(ValueError, match="feature is 'res5'; allowed are.*'res4'"):
        build_model(cfg)


@pytest.mark.grid
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "cifar" not in name])
def test_every_variant_builds_a_pyramid_and_a_c4_head(variant):
    cfg = small_config(HEADS[0])
    cfg.MODEL.DGNET.VARIANT = variant
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    for name, shape in backbone.output_shape().items():
        assert features[name].shape[2:] == (max(64 // shape.stride, 1), -(-96 // shape.stride))
    cfg = small_config(HEADS[2])
    cfg.MODEL.DGNET.VARIANT = variant
    with torch.device("meta"):
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
    assert isinstance(model.roi_heads.res5, DGStage)
    assert model.backbone.size_divisibility == 16


def test_c4_regions_have_their_own_connectivity_and_may_be_none():
    cfg = small_config(HEADS[2])
    model = build_model(cfg).eval()
    stage = model.roi_heads.res5
    with torch.no_grad(), record_connectivity(model) as records:
        stage(torch.randn(5, 256, 14, 14))
        assert stage(torch.zeros(0, 256, 14, 14)).shape == (0, 512, 7, 7)
    assert [m.shape[0] for m in records["roi_heads.res5.graphs.3"]] == [5, 0]


def test_the_meta_architecture_passes_the_images_sizes(monkeypatch):
    """An image's edges move less in a padded batch than under the stock architecture."""
    large, small = sample((128, 160)), sample((64, 64))
    moves = {}
    for name in ("GeneralizedRCNN", "GramGeneralizedRCNN"):
        torch.manual_seed(0)
        cfg = small_config(HEADS[0])
        cfg.MODEL.META_ARCHITECTURE = name
        model = build_model(cfg).eval()
        for graph in model.backbone.bottom_up.graphs.values():
            for router in graph.routers:
                torch.nn.init.normal_(router.weight, std=0.1)
        with torch.no_grad(), record_connectivity(model) as records:
            model([small])
            model([large, small])
        moves[name] = sum((m[1][1] - m[0][0]).abs().mean().item() for m in records.values())
    assert 0 < moves["GramGeneralizedRCNN"] < 0.7 * moves["GeneralizedRCNN"]


def test_the_meta_architecture_takes_other_backbones_too():
    cfg = gram.get_config("mask_rcnn_aognet12m_fpn_1x")
    cfg.MODEL.META_ARCHITECTURE = "GramGeneralizedRCNN"
    cfg.MODEL.AOGNET.VARIANT, cfg.MODEL.DEVICE = "aognet_4m", "cpu"
    with torch.no_grad():
        assert build_model(cfg).eval()([sample()])


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", (HEADS[0], HEADS[2]))
def test_a_torchvision_checkpoint_starts_the_detector(name, tmp_path, caplog):
    cfg = small_config(name)
    base = models.resnet18()
    torch.save(base.state_dict(), tmp_path / "resnet18.pth")
    model = build_model(cfg)
    with caplog.at_level("INFO"):
        gram.GramCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    assert "tensors from" in caplog.text and "routers and thresholds start near it" in caplog.text
    biases = [graph.routers[0].bias for graph in dynamic_graphs(model).values()]
    assert len(biases) == 4 and all(set(bias.tolist()) == {9, -9} for bias in biases)
    state = model.state_dict()
    c4 = "c4" in name
    last = "roi_heads.res5" if c4 else "backbone.bottom_up"
    first = "backbone" if c4 else "backbone.bottom_up"
    weights = base.state_dict()
    key = "layer4.1.conv2.weight"
    assert torch.equal(state[f"{last}.{key}"], weights[key])
    assert torch.equal(state[f"{first}.conv1.weight"], weights["conv1.weight"])
    del weights[key]
    torch.save(weights, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=key):
        gram.GramCheckpointer(model).load(str(tmp_path / "resnet18.pth"))


@pytest.mark.slow
def test_lazy_config():
    cfg = get_lazy_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    cfg.backbone.bottom_up = L(gram.DGNetBackbone)(
        variant="dgnet_r18", out_features=["res2", "res3", "res4", "res5"], start_as_base=True
    )
    cfg._target_ = gram.GramGeneralizedRCNN
    model = instantiate(cfg)
    sum(model([sample()]).values()).backward()
    assert model.backbone.bottom_up.graphs["3"].thresholds.grad is not None


@pytest.mark.slow
@needs_coco
def test_the_shipped_r50_trains_and_evaluates_on_photographs(tmp_path):
    small = (
        "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (128,160) INPUT.MAX_SIZE_TRAIN 224 "
        "INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 192 SOLVER.IMS_PER_BATCH 2 "
        "SOLVER.MAX_ITER 6 SOLVER.STEPS () SOLVER.BASE_LR 0.002 TEST.PICTURES.NUM 2 "
        "MODEL.RPN.POST_NMS_TOPK_TEST 50"
    ).split()
    config = ("--config", "d2_configs/faster_rcnn_dgnet_r50_fpn_1x.yaml")
    done = run_tool(*config, *small, "OUTPUT_DIR", tmp_path, datasets=DATASETS)
    check_ended_well(done)
    assert len(list((tmp_path / "inference/coco_2017_val/pictures").glob("*.png"))) == 2


@pytest.mark.slow
@needs_coco
def test_overfitting_four_photographs_moves_thresholds_and_routers(tmp_path):
    annotations = json.loads((DATASETS / "coco/annotations/instances_train2017.json").read_text())
    ids = [image["id"] for image in annotations["images"][:4]]
    annotations["images"] = annotations["images"][:4]
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in ids]
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (coco / f"annotations/instances_{split}2017.json").write_text(json.dumps(annotations))
        (coco / f"{split}2017").symlink_to((DATASETS / "coco/train2017").resolve())
    small = (
        "MODEL.DGNET.VARIANT dgnet_r18 MODEL.DGNET.NORM BN MODEL.BACKBONE.FREEZE_AT 0 "
        "MODEL.DGNET.START_AS_BASE False MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 128 "
        "DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (128,) INPUT.MAX_SIZE_TRAIN 192 "
        "INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 192 INPUT.RANDOM_FLIP none "
        "SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 80 SOLVER.STEPS () SOLVER.BASE_LR 0.005 "
        "SOLVER.WARMUP_ITERS 10 SOLVER.WEIGHT_DECAY 0.0 SOLVER.CHECKPOINT_PERIOD 5 "
        "TEST.PICTURES.NUM 0 "
        "MODEL.RPN.POST_NMS_TOPK_TRAIN 100 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64"
    ).split()
    config = ("--config", "d2_configs/faster_rcnn_dgnet_r50_fpn_1x.yaml")
    done = run_tool(*config, *small, "OUTPUT_DIR", tmp_path / "out", datasets=tmp_path)
    check_ended_well(done)
    lines = [json.loads(s) for s in (tmp_path / "out/metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < 0.75 * losses[0]
    first, last = (
        torch.load(tmp_path / "out" / f"model_{name}.pth", weights_only=True)["model"]
        for name in ("0000004", "final")
    )
    for i in range(4):
        prefix = f"backbone.bottom_up.graphs.{i}"
        assert not torch.equal(first[f"{prefix}.thresholds"], last[f"{prefix}.thresholds"])
        bias = f"{prefix}.routers.0.bias"
        assert not torch.equal(first[bias], last[bias])


def test_rewired_networks_record_their_connectivity():
    own = rewire(models.resnet18(), ("layer2",), torch.zeros(1, 3, 64, 64)).eval()
    with torch.no_grad(), record_connectivity(own) as records:
        own(torch.randn(2, 3, 64, 64))
    assert list(records) == ["layer2.graph"]
