"""Detectors and segmenters of transformers on the timm adapter."""

import copy
from functools import cache

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("scipy", reason="the matching losses of transformers need scipy")

import timm
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import gram_backbones.timm  # noqa: F401  registers every model
from gram_backbones import create_model, load_weights

NAMES = ("aognet_4m", "dgnet_r18")
SIZE = 64
CLASSES = 3
QUERIES = 5


def backbone_config(name, out_indices=(1, 2, 3, 4)):
    return TimmBackboneConfig(backbone=name, out_indices=list(out_indices))


def tiny_detr(name, **kwargs):
    config = DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=QUERIES,
        num_labels=CLASSES,
        **(kwargs or dict(backbone_config=backbone_config(name))),
    )
    return DetrForObjectDetection(config)


def tiny_upernet(name):
    config = UperNetConfig(
        backbone_config=backbone_config(name),
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        num_labels=CLASSES,
    )
    return UperNetForSemanticSegmentation(config)


def tiny_mask2former(name):
    config = Mask2FormerConfig(
        backbone_config=backbone_config(name),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=64,
    )
    return Mask2FormerForUniversalSegmentation(config)


def square():
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 16:48, 16:48] = 1
    return mask


# Model, path of our network in it, shapes of its outputs, what its loss takes.
HEADS = {
    "detr": (
        tiny_detr,
        "model.backbone.model",
        dict(logits=(2, QUERIES, CLASSES + 1), pred_boxes=(2, QUERIES, 4)),
        lambda: dict(
            labels=[dict(class_labels=torch.tensor([1]), boxes=torch.full((1, 4), 0.5))] * 2
        ),
    ),
    "upernet": (
        tiny_upernet,
        "backbone._backbone",
        dict(logits=(2, CLASSES, SIZE, SIZE)),
        lambda: dict(labels=square().long().expand(2, -1, -1)),
    ),
    "mask2former": (
        tiny_mask2former,
        "model.pixel_level_module.encoder._backbone",
        dict(
            class_queries_logits=(2, QUERIES, CLASSES + 1),
            masks_queries_logits=(2, QUERIES, SIZE // 4, SIZE // 4),
        ),
        lambda: dict(mask_labels=[square()] * 2, class_labels=[torch.tensor([1])] * 2),
    ),
}


@torch.no_grad()
def randomised(model):
    """Fresh norms hide what they scale by 0 or 1; DETR's frozen ones are no BatchNorm2d."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.weight.uniform_(0.3, 0.9)
            module.bias.normal_(std=0.1)
    return model


@pytest.fixture(
    scope="module", params=[(head, name) for head in HEADS for name in NAMES], ids="-".join
)
def built(request):
    """A model as its configuration builds it, the names of its head and of our network."""
    head, name = request.param
    torch.manual_seed(0)
    return HEADS[head][0](name).eval(), head, name


@cache
def core(name):
    return randomised(create_model(name, features_only=True)).eval()


def images():
    return torch.randn(2, 3, SIZE, SIZE)


def outputs(model, head, x):
    with torch.no_grad():
        out = model(x)
    return {key: getattr(out, key) for key in HEADS[head][2]}


@pytest.mark.grid
def test_our_start_is_kept(built):
    # Transformers initialises what it takes for its own; routers' biases of 3 and -3 must stay.
    model, head, name = built
    torch.manual_seed(0)
    start = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).state_dict()
    own = model.get_submodule(HEADS[head][1]).state_dict()
    absent = start.keys() - own.keys()  # DETR's frozen norms do not count batches
    assert own.keys() <= start.keys()
    assert all(n.endswith("num_batches_tracked") for n in absent)
    assert not [n for n, value in own.items() if not torch.equal(value, start[n])]


@pytest.mark.grid
def test_outputs_depend_on_the_image(built):
    model, head, _ = built
    model, x = randomised(copy.deepcopy(model)), images()
    out = outputs(model, head, x)
    assert {key: tuple(value.shape) for key, value in out.items()} == HEADS[head][2]
    for key, value in out.items():
        assert value.isfinite().all()
        assert not torch.equal(value[0], value[1]), key


@pytest.mark.grid
def test_gradients_reach_every_parameter(built):
    model, head, _ = built
    model = randomised(copy.deepcopy(model)).train()
    loss = model(images(), **HEADS[head][3]()).loss
    loss.backward()
    assert loss.isfinite()
    network = model.get_submodule(HEADS[head][1])
    grads = {n: p.grad for n, p in network.named_parameters()}
    assert grads
    assert not [n for n, grad in grads.items() if grad is None or not grad.abs().sum() > 0]


@pytest.mark.slow
@pytest.mark.grid
def test_saved_models_load_with_the_same_outputs(built, tmp_path):
    model, head, _ = built
    model, x = randomised(copy.deepcopy(model)), images()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    out = outputs(loaded, head, x)
    for key, value in outputs(model, head, x).items():
        assert torch.equal(out[key], value), key


@pytest.mark.grid
@pytest.mark.parametrize("name", NAMES)
def test_load_weights_fills_the_network_in_detr(name):
    # The others hold a TimmBackbone, see test_features_are_the_core_s.
    plain = core(name)
    network = tiny_detr(name).get_submodule(HEADS["detr"][1]).eval()
    # A file of a classifier, as ImageNet training leaves it.
    state = {**create_model(name).state_dict(), **plain.state_dict()}
    load_weights(network, state)
    x = images()
    with torch.no_grad():
        for feature, expected in zip(network(x), plain(x).values(), strict=True):
            # DETR's frozen norms round otherwise.
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_detr_takes_the_backbone_s_name():
    torch.manual_seed(0)
    by_name = tiny_detr(
        "", backbone=NAMES[1], use_timm_backbone=True, use_pretrained_backbone=False
    )
    torch.manual_seed(0)
    by_config = tiny_detr(NAMES[1])
    x = images()
    a, b = (outputs(model.eval(), "detr", x) for model in (by_name, by_config))
    assert torch.equal(a["logits"], b["logits"])


@pytest.mark.parametrize("name", (*NAMES, "dgnet_mobilenet_v2"))
def test_features_are_the_core_s(name):
    plain = core(name)
    backbone = TimmBackbone(backbone_config(name)).eval()
    load_weights(backbone._backbone, plain.state_dict())
    x = images()
    with torch.no_grad():
        features, expected = backbone(x).feature_maps, plain(x).values()
    assert backbone.channels == [feature.shape[1] for feature in features]
    for feature, wanted in zip(features, expected, strict=True):
        assert torch.equal(feature, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_all_features_up_to_the_last_one(name):
    backbone = TimmBackbone(backbone_config(name, (1, 3))).eval()
    x = images()
    with torch.no_grad():
        usual = backbone(x).feature_maps
        out = backbone(x, output_hidden_states=True)
        again = backbone(x).feature_maps
    assert [SIZE // h.shape[2] for h in out.hidden_states] == [2, 4, 8, 16]
    for maps in (out.feature_maps, again, (out.hidden_states[1], out.hidden_states[3])):
        assert len(maps) == 2
        assert all(torch.equal(a, b) for a, b in zip(maps, usual))
