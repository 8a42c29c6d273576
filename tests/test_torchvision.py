"""torchvision's detectors on our backbones."""

import copy

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from gram_backbones import create_model
from gram_backbones.dgnet import DGNet
from gram_backbones.torchvision import BackboneWithFPN, pass_image_sizes

SIZES = dict(num_classes=3, min_size=64, max_size=96)
IMAGES = [torch.rand(3, 48, 64), torch.rand(3, 64, 48)]
TARGET = dict(boxes=torch.tensor([[5.0, 5.0, 40.0, 30.0]]), labels=torch.tensor([1]))


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_the_pyramid_has_torchvision_s_names_and_reads_every_feature(name):
    body = create_model(name, features_only=True)
    backbone = BackboneWithFPN(body, 32).train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [x.shape[1:] for x in maps.values()] == [(32, s, s) for s in (16, 8, 4, 2, 1)]
    sum(x.square().sum() for x in maps.values()).backward()
    assert not [n for n, p in body.named_parameters() if p.grad is None]


def test_a_foreign_backbone_is_refused_with_a_sentence():
    """Bug: it was an AttributeError of num_classes."""
    with pytest.raises(ValueError, match="body is a ResNet; allowed are AOGNet and DGNet"):
        BackboneWithFPN(resnet18())


def test_a_classifier_is_refused():
    with pytest.raises(ValueError, match="num_classes of the backbone is 5; allowed is None"):
        BackboneWithFPN(create_model("dgnet_r18", num_classes=5))


@pytest.mark.grid
@pytest.mark.parametrize("detector_class", (RetinaNet, FCOS))
@pytest.mark.parametrize("name", ("dgnet_r18", "aognet_4m"))
def test_detectors_of_one_stage_train_and_predict(detector_class, name):
    body = create_model(name, features_only=True, out_features=("res3", "res4", "res5"))
    backbone = BackboneWithFPN(body, 32, extra_blocks=LastLevelP6P7(32, 32))
    detector = pass_image_sizes(detector_class(backbone, **SIZES))
    sum(detector.train()(IMAGES, [TARGET, TARGET]).values()).backward()
    assert next(body.parameters()).grad.abs().sum() > 0
    with torch.no_grad():
        assert len(detector.eval()(IMAGES)) == 2


def test_image_sizes_reach_the_routers():
    """Routers see the same image alone and next to a larger one."""
    backbone = BackboneWithFPN(DGNet("dgnet_r18"), 16).eval()
    detector = FasterRCNN(backbone, **SIZES, rpn_post_nms_top_n_test=5).eval()
    detector = copy.deepcopy(pass_image_sizes(detector))  # copies pass them to their own backbone
    seen = []
    detector.backbone.body.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("valid_sizes")), with_kwargs=True
    )
    with torch.no_grad():
        detector(IMAGES)
        detector.backbone(torch.rand(2, 3, 64, 64))
    assert seen == [[(64, 85), (85, 64)], None]
