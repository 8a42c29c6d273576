"""One core, two adapters: the same network in both frameworks from one weight file."""

import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model
from mmdet.registry import MODELS
from torch import nn

import gram_backbones.d2 as d2
import gram_backbones.mmdet  # noqa: F401 (registers)
from gram_backbones import create_model

FEATURES = ("res2", "res3", "res4", "res5")


def settled(name):
    """A classifier with norms away from their start; features stay finite."""
    model = create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    (
        ("aognet_12m", "mask_rcnn_aognet12m_fpn_1x"),
        ("dgnet_r50", "mask_rcnn_dgnet_r50_fpn_1x"),
    ),
)
def test_features_are_equal_bit_for_bit(name, config, tmp_path):
    file = tmp_path / "weights.pth"
    source = settled(name)
    torch.save(source.state_dict(), file)
    cfg = d2.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    (cfg.MODEL.AOGNET if "aognet" in name else cfg.MODEL.DGNET).VARIANT = name
    detector = build_model(cfg)
    d2.GramCheckpointer(detector).load(str(file))
    first = detector.backbone.bottom_up.eval()
    second = MODELS.build(
        dict(
            type="AOGNet" if "aognet" in name else "DGNet",
            variant=name,
            frozen_stages=1,
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
            init_cfg=dict(type="Pretrained", checkpoint=str(file)),
        )
    )
    second.init_weights()
    x = torch.randn(2, 3, 96, 128)
    for train in (False, True):  # frozen BN: the mode makes no difference to norms
        first.train(train), second.train(train)
        with torch.no_grad():
            one, other = first(x), second(x)
        assert all(torch.equal(one[n], feature) for n, feature in zip(FEATURES, other))
    assert not torch.equal(one["res5"], torch.zeros_like(one["res5"]))
    buffers = ("num_batches_tracked",)
    names = {n for n in second.state_dict() if not n.endswith(buffers)}
    assert names == set(first.state_dict())


@pytest.mark.grid
@pytest.mark.parametrize(
    ("dtype", "tolerance"), ((torch.float32, 1e-5), (torch.float64, 1e-10)), ids=str
)
def test_with_gradients_features_agree_to_rounding(dtype, tolerance):
    """Detectron2's FrozenBN then computes by another formula."""
    source = settled("aognet_4m")
    first = d2.AOGNetBackbone("aognet_4m", norm="FrozenBN", freeze_at=0)
    second = MODELS.build(dict(type="AOGNet", variant="aognet_4m", norm_cfg=dict(type="BN")))
    for model in (first, second):
        model.load_state_dict(source.state_dict(), strict=False)
        model.to(dtype).train()
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    for one, other in zip(first(x).values(), second(x)):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
