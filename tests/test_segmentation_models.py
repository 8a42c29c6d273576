"""Decoders of segmentation_models.pytorch on the timm adapter."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)

import segmentation_models_pytorch as smp

import gram_backbones.timm  # noqa: F401  registers every model
from gram_backbones import create_model, load_weights

NAMES = ("aognet_4m", "dgnet_r18", "dgnet_mobilenet_v2")
DECODERS = (smp.Unet, smp.FPN, smp.UPerNet)
CLASSES = 3


def build(decoder, name, **kwargs):
    return decoder(encoder_name=f"tu-{name}", encoder_weights=None, classes=CLASSES, **kwargs)


def randomised(model):
    """Fresh norms hide what they scale by 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, std=0.1)
    return model


def images(channels=3):
    return torch.randn(2, channels, 64, 64)


@pytest.mark.grid
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_masks_have_the_image_s_size_and_a_step_of_the_encoder_alone_learns(decoder, name):
    torch.manual_seed(0)
    model = randomised(build(decoder, name)).train()
    for module in model.modules():
        # FPN has dropout. Batch statistics of a few values make the loss too rough to compare.
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    x, target = images(), torch.randint(CLASSES, (2, 64, 64))
    masks = model(x)
    assert masks.shape == (2, CLASSES, 64, 64)
    loss = nn.functional.cross_entropy(masks, target)
    loss.backward()
    grads = {n: p.grad for n, p in model.encoder.named_parameters()}
    assert grads
    assert not [n for n, grad in grads.items() if grad is None or not grad.abs().sum() > 0]
    length = torch.stack([grad.norm() for grad in grads.values()]).norm()
    torch.optim.SGD(model.encoder.parameters(), lr=float(0.001 / length)).step()
    with torch.no_grad():
        assert nn.functional.cross_entropy(model(x), target) < loss


@pytest.mark.grid
@pytest.mark.parametrize("name", NAMES)
def test_encoder_gives_the_image_and_the_core_s_features(name):
    plain = randomised(create_model(name, features_only=True)).eval()
    encoder = build(smp.Unet, name).encoder.eval()
    load_weights(encoder.model, plain.state_dict())
    x = images()
    with torch.no_grad():
        features, expected = encoder(x), plain(x).values()
    assert [feature.shape[1] for feature in features] == encoder.out_channels
    assert [64 // feature.shape[2] for feature in features] == [1, 2, 4, 8, 16, 32]
    assert torch.equal(features[0], x)
    for feature, wanted in zip(features[2:], expected, strict=True):
        assert torch.equal(feature, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_and_fewer_stages(name):
    model = build(
        smp.Unet, name, in_channels=1, encoder_depth=4, decoder_channels=(32, 16, 8, 8)
    ).eval()
    with torch.no_grad():
        features, masks = model.encoder(images(1)), model(images(1))
    assert masks.shape == (2, CLASSES, 64, 64)
    assert [64 // feature.shape[2] for feature in features] == [1, 2, 4, 8, 16]
    last = {"aognet_4m": "res5", "dgnet_r18": "layer4", "dgnet_mobilenet_v2": "features.17"}[name]
    assert not [n for n in model.encoder.model.state_dict() if n.startswith(last)]


def test_a_file_of_one_s_own_fills_the_encoder(tmp_path):
    name = "dgnet_r18"
    state = randomised(create_model(name)).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = smp.Unet(
        encoder_name=f"tu-{name}",
        encoder_weights=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "w.pth")),
    )
    own = model.encoder.model.state_dict()
    assert not [n for n, value in own.items() if not torch.equal(value, state[n])]


def test_saved_models_load_with_the_same_masks(tmp_path):
    model = randomised(build(smp.Unet, "dgnet_r18")).eval()
    model.save_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path).eval()
    x = images()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
