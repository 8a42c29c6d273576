"""A family of one's own in 40 lines, through everything that takes ours."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from gram_backbones import create_model, list_models, load_weights, registry
from gram_backbones.layers import Norm, resolve_norm
from gram_backbones.preprocessing import IMAGENET_RGB
from gram_backbones.renaming import substitute, unchanged
from gram_backbones.staged import FEATURES, StagedBackbone, Variant
from gram_backbones.weights import WeightError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ToyVariant(Variant):
    channels: tuple[int, ...] = (8, 8, 16, 24, 32)

    preprocessing = IMAGENET_RGB
    stem_paths = ("stem",)
    first_conv = "stem.0"
    namings = {"own": unchanged, "stages": substitute((r"^res(\d)\.", r"stages.\1."))}


class Toy(StagedBackbone):
    """One strided convolution for each feature."""

    VARIANTS = {"toy": ToyVariant(), "toy_wide": ToyVariant((16, 16, 32, 48, 64))}
    PAPER = "none"

    def __init__(
        self,
        variant="toy",
        *,
        out_features=None,
        num_classes=None,
        norm: Norm = "BN",
        frozen_stages=-1,
        in_channels=3,
    ):
        super().__init__()
        variant = self.find_variant(variant)
        channels = dict(zip(FEATURES, variant.channels))
        strides = {name: 2 << i for i, name in enumerate(FEATURES)}
        self._plan_features(variant, channels, strides, out_features, num_classes)
        before = in_channels
        for name, after in self.feature_channels.items():
            layer = Conv2dNormActivation(before, after, 3, 2, norm_layer=resolve_norm(norm))
            self.add_module(name, layer)
            before = after
        if num_classes:
            self.fc = nn.Linear(before, num_classes)
        self.freeze_stages(frozen_stages)


ToyVariant.network = Toy


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", registry._FAMILIES.copy())
    registry.register_family(Toy)


def test_it_is_a_model_by_name():
    assert list_models("toy*") == ["toy", "toy_wide"]
    x = torch.randn(2, 3, 64, 64)
    assert create_model("toy", num_classes=5)(x).shape == (2, 5)
    features = create_model("toy", features_only=True, out_features=("res2", "res4"))(x)
    assert {n: f.shape[1:] for n, f in features.items()} == {
        "res2": (8, 16, 16),
        "res4": (24, 4, 4),
    }
    frozen = create_model("toy", features_only=True, frozen_stages=1).train()
    assert not frozen.res2.training and frozen.res3.training
    with pytest.raises(ValueError, match="registered already"):
        registry.register_family(Toy)


def test_weights_fit_strictly():
    source = create_model("toy", num_classes=5)
    model = create_model("toy", features_only=True)
    named = {k.replace("res", "stages."): v for k, v in source.state_dict().items()}
    assert len(load_weights(model, named).values) == len(model.state_dict())
    assert torch.equal(model.res5[0].weight, source.res5[0].weight)
    del named["stages.4.0.weight"]
    with pytest.raises(WeightError, match="res4.0.weight"):
        load_weights(model, named)
    with pytest.raises(WeightError, match="its tensors fit toy$"):
        load_weights(create_model("toy_wide", num_classes=5), source.state_dict())


@pytest.fixture
def weight_file(tmp_path):
    """A classifier's file, under the family's other naming."""
    state = create_model("toy", num_classes=5).state_dict()
    torch.save({k.replace("res", "stages."): v for k, v in state.items()}, tmp_path / "toy.pth")
    return str(tmp_path / "toy.pth")


def check_filled(network, weight_file):
    state = torch.load(weight_file)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name.replace("res", "stages.")]), name


def lacking(weight_file):
    """The file without one tensor."""
    state = torch.load(weight_file)
    del state["stages.4.0.weight"]
    torch.save(state, weight_file)
    return weight_file


def test_detectron2_takes_it(weight_file):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.config import CfgNode
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model

    from gram_backbones.d2 import GramCheckpointer, get_config, interface

    class ToyBackbone(interface.D2Interface, Toy, Backbone):
        default_variant = "toy"

    def build(cfg, input_shape):
        return ToyBackbone(norm=cfg.MODEL.TOY.NORM, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)

    names = ("build_toy_backbone", "build_toy_fpn_backbone", "build_retinanet_toy_fpn_backbone")
    try:
        node = CfgNode({"NORM": "BN"})
        interface.register_builders("toy", node, build, None)
        cfg = get_config("faster_rcnn_aognet12m_fpn_1x")
        assert cfg.MODEL.TOY == node
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.BACKBONE.NAME = names[1]
        model = build_model(cfg)
        assert all(name in BACKBONE_REGISTRY for name in names)
        backbone = model.backbone.bottom_up
        shapes = {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()}
        assert shapes == {"res2": (8, 4), "res3": (16, 8), "res4": (24, 16), "res5": (32, 32)}
        assert model.backbone(torch.randn(1, 3, 64, 64))["p5"].shape == (1, 256, 2, 2)
        GramCheckpointer(model).load(weight_file)
        check_filled(backbone, weight_file)
        with pytest.raises(WeightError, match="res4.0.weight"):
            GramCheckpointer(model).load(lacking(weight_file))
    finally:
        interface.LAST_STAGES.pop(names[0])
        interface.CONFIG_NODES.pop("TOY")
        for name in names:
            del BACKBONE_REGISTRY._obj_map[name]


def test_mmdetection_takes_it(weight_file):
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from mmdet.registry import MODELS
    from mmengine.model import BaseModule

    from gram_backbones.mmdet.interface import MMDetBackbone

    class ToyBackbone(MMDetBackbone, Toy, BaseModule):
        default_variant = "toy"

    init_cfg = dict(type="Pretrained", checkpoint=weight_file)
    cfg = dict(type="Toy", out_indices=(2, 3), frozen_stages=1, norm_eval=True, init_cfg=init_cfg)
    try:
        MODELS.register_module("Toy", module=ToyBackbone)
        backbone = MODELS.build(cfg)
        assert backbone.out_channels == (24, 32)
        assert [f.shape[1] for f in backbone.train()(torch.randn(1, 3, 64, 64))] == [24, 32]
        backbone.init_weights()
        check_filled(backbone, weight_file)
        lacking(weight_file)
        with pytest.raises(WeightError, match="res4.0.weight"):
            MODELS.build(cfg).init_weights()
    finally:
        MODELS.module_dict.pop("Toy")


def register_with_timm_and_run():
    import timm

    import gram_backbones.timm as adapter

    class TimmToy(adapter.TimmInterface, Toy):
        def group_matcher(self, coarse=False):
            return dict(stem=r"^stem", blocks=r"^res(\d)")

    adapter.register_family(TimmToy)
    model = timm.create_model("toy", features_only=True, out_indices=(1, 4))
    assert [f.shape[1] for f in model(torch.randn(1, 3, 64, 64))] == [8, 32]
    assert timm.create_model("toy", num_classes=5)(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.slow
def test_timm_takes_it():
    """In a process of its own: timm does not forget a model."""
    pytest.importorskip("timm", reason="timm is not installed")
    code = "from tests.test_new_family import register_with_timm_and_run as run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
