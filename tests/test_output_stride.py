"""Dilation instead of stride: the pixels that a strided network has are the same."""

import pytest
import torch

from gram_backbones import create_model, list_models
from tests.test_fused import filled

# Squeeze-and-excitation and routers pool more pixels.
IMAGENET = [name for name in list_models() if "cifar" not in name and "regnety" not in name]


@pytest.mark.grid
@pytest.mark.parametrize("output_stride", (8, 16))
@pytest.mark.parametrize("name", IMAGENET)
def test_every_other_pixel_is_the_strided_network_s(name, output_stride):
    options = {"edges": "chain"} if name.startswith("dgnet") else {}
    strided = filled(create_model(name, features_only=True, **options)).eval()
    model = create_model(name, features_only=True, output_stride=output_stride, **options).eval()
    assert model.state_dict().keys() == strided.state_dict().keys()
    model.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        wanted, got = strided(x), model(x)
    for feature, stride in strided.feature_strides.items():
        if feature == "stem":
            continue
        assert model.feature_strides[feature] == min(stride, output_stride)
        step = stride // model.feature_strides[feature]
        pixels = got[feature][:, :, ::step, ::step]
        assert (pixels - wanted[feature]).norm() < 1e-5 * wanted[feature].norm()
    assert model.size_divisibility == output_stride


@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18", "dgnet_regnety_600m"))
def test_it_trains_and_deploys(name):
    model = filled(create_model(name, features_only=True, output_stride=8))
    features = model(torch.randn(2, 3, 64, 96))
    assert {tuple(f.shape[2:]) for n, f in features.items() if n != "res2"} == {(8, 12)}
    sum(feature.mean() for feature in features.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        got, wanted = model.deploy()(x)["res5"], model(x)["res5"]
    assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_routers_pool_the_unpadded_part_at_the_stride_that_stays():
    model = filled(create_model("dgnet_r18", features_only=True, output_stride=8)).eval()
    x = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(x, (0, 64))
    with torch.no_grad():
        from gram_backbones import record_connectivity

        with record_connectivity(model) as whole:
            model(x)
        with record_connectivity(model) as part:
            model(padded, valid_sizes=[(64, 64)])
    first, last = (next(reversed(records.values()))[0] for records in (whole, part))
    # Not equal: convolutions see zeros beyond an edge, and features beyond a valid part.
    assert (first - last).abs().max() < 0.05


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_other_strides_are_refused(name):
    with pytest.raises(ValueError, match=r"output_stride is 4; allowed are \(8, 16, 32\)"):
        create_model(name, output_stride=4)


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_in_detectron2(name):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY

    import gram_backbones.d2 as d2

    family = name.partition("_")[0]
    config = {"aognet": "aognet12m", "dgnet": "dgnet_r50"}[family]
    cfg = d2.get_config(f"mask_rcnn_{config}_c4_1x")
    cfg.MODEL.DEVICE = "cpu"
    node = cfg.MODEL[family.upper()]
    node.VARIANT, node.OUTPUT_STRIDE = name, 16
    node.OUT_FEATURES = ["res4", "res5"]  # DC5; pyramids take features of different strides
    shape = ShapeSpec(channels=3)
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, shape)
    assert [s.stride for s in backbone.output_shape().values()] == [16, 16]
    assert backbone(torch.randn(1, 3, 64, 64))["res5"].shape[2:] == (4, 4)


@pytest.mark.parametrize("kind, name", (("AOGNet", "aognet_4m"), ("DGNet", "dgnet_r18")))
def test_in_mmdetection(kind, name):
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from mmdet.registry import MODELS

    import gram_backbones.mmdet  # noqa: F401 (registers)

    backbone = MODELS.build(dict(type=kind, variant=name, output_stride=16))
    assert [f.shape[-1] for f in backbone(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 4]


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_in_timm_and_deeplab(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    import gram_backbones.timm  # noqa: F401 (registers)

    model = timm.create_model(name, features_only=True, output_stride=8)
    assert model.feature_info.reduction()[-2:] == [8, 8]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 64, 64))][-3:] == [8, 8, 8]
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.DeepLabV3Plus(f"tu-{name}", encoder_weights=None, classes=4)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4, 64, 64)
