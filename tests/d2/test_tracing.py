"""Detectors under Detectron2's TracingAdapter and its FLOP counter."""

import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import flop_count_operators

from gram_backbones import record_connectivity
from tests.conftest import check_ended_well
from tests.d2 import test_backbones, test_dgnet
from tests.dgnet.open_edges import check_close, coloured_images, open_edges, settle, spread

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace.*` is deprecated:FutureWarning"
)
DGNETS = ("mask_rcnn_dgnet_r50_fpn_1x", "mask_rcnn_dgnet_r50_c4_1x")
AOGNET = "mask_rcnn_aognet12m_fpn_1x"
C4 = "mask_rcnn_aognet12m_c4_1x"
DETECTORS = (*DGNETS, pytest.param(AOGNET, marks=pytest.mark.slow))
SIZE = (64, 96)


@cache
def detector(name):
    """A small detector in eval mode that finds something in noise, and four images for it."""
    aognet = "aognet" in name
    small_config = test_backbones.small_config if aognet else test_dgnet.small_config
    changes = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 12,
    }
    changes["MODEL.AOGNET.NORM" if aognet else "MODEL.DGNET.NORM"] = "BN"
    torch.manual_seed(0)
    model = settle(build_model(small_config(name, **changes))).eval()
    # Scores and boxes that differ by more than rounding from region to region.
    nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=1.0)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.1)
    for seed in range(100):
        torch.manual_seed(seed)
        spread(model.backbone)
        spread(model.roi_heads, std=20.0)  # regions differ less than images
        inputs = [{"image": 128 + 50 * image[0]} for image in coloured_images(size=SIZE)]
        if aognet or all_differ(model, inputs):
            return model, inputs
    raise AssertionError("no seed gives four images with edges of their own")


def all_differ(model, inputs):
    """Whether images open different edges in the backbone, and regions in a C4 head."""
    images = [model.preprocess_image([item]).tensor for item in inputs]
    if len({open_edges(model.backbone, image) for image in images}) < len(images):
        return False
    with torch.no_grad(), record_connectivity(model.roi_heads) as records:
        model(inputs[:1])
    regions = [matrices[0].ne(0).flatten(1) for matrices in records.values()]
    return all(len(opened.unique(dim=0)) > 1 for opened in regions)


def detect(model, *inputs):
    """The network's own detections, not rescaled to the size of the image file."""
    return model.inference(list(inputs), do_postprocess=False)


def check_same_detections(got, wanted):
    """``pred_boxes``, ``scores``, ``pred_classes`` and masks of one image."""
    assert len(wanted) > 3
    check_close(got.pred_boxes.tensor, wanted.pred_boxes.tensor)
    check_close(got.scores, wanted.scores)
    check_close(got.pred_masks, wanted.pred_masks)
    assert torch.equal(got.pred_classes, wanted.pred_classes)


@cache
def traced_detector(name):
    """The detector traced with its first image, as a function from an input to detections."""
    model, inputs = detector(name)
    adapter = TracingAdapter(model, inputs[0], detect)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    return lambda item: adapter.outputs_schema(traced(item["image"]))


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", DETECTORS)
def test_a_traced_detector_finds_the_same_as_in_eager_mode(name):
    model, inputs = detector(name)
    run = traced_detector(name)
    with torch.no_grad():
        for item in inputs:
            check_same_detections(run(item)[0], detect(model, item)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_traced_detector_takes_other_image_sizes(name):
    model, inputs = detector(name)
    run = traced_detector(name)
    with torch.no_grad():
        for height, width in ((64, 64), (50, 90), (33, 70)):
            item = {"image": inputs[1]["image"][:, :height, :width]}
            check_same_detections(run(item)[0], detect(model, item)[0])


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", DETECTORS)
def test_detectron2_counts_operators(name):
    model, inputs = detector(name)
    with torch.no_grad():
        counted = flop_count_operators(model, [inputs[0]])
    assert counted["conv"] > 0 and counted["linear"] > 0


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["gram_backbones"] = sys.modules["detectron2"] = None  # importing either is an error
import torch, torchvision
detector = torch.jit.load(sys.argv[1])
images, found = torch.load(sys.argv[2])
for image, wanted in zip(images, found):
    with torch.no_grad():
        got = detector(image)
    assert len(got) == len(wanted) and len(wanted[0]) > 3
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
print("the same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", (*DGNETS, AOGNET, C4))
def test_a_torchscript_file_runs_where_the_package_is_not(name, tmp_path):
    model, inputs = detector(name)
    adapter = TracingAdapter(model, inputs[0], detect)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        found = [TracingAdapter(model, item, detect)(item["image"]) for item in inputs]
    traced.save(tmp_path / "detector.pt")
    images = [item["image"] for item in inputs]
    torch.save((images, found), tmp_path / "found.pt")
    files = [str(tmp_path / name) for name in ("detector.pt", "found.pt")]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    check_ended_well(done)
    assert "the same" in done.stdout
