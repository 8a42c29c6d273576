"""Every shipped MMDetection config: what it says, and a training step on a photograph."""

import ast
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmdet.apis import inference_detector
from mmdet.registry import DATASETS as DATASET_TYPES
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import gram_backbones.mmdet as gram
from gram_backbones.aognet import VARIANTS as AOG_VARIANTS
from gram_backbones.dgnet import VARIANTS as DG_VARIANTS
from tests.conftest import DATASETS, needs_coco

FOLDER = Path(__file__).resolve().parents[2] / "mmdet_configs"
LEAVES = sorted(
    str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if path.parent.name != "_base_"
)
# Of both families; the others run with tools/test.sh --all.
QUICK = (
    "mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py",
    "faster_rcnn/faster-rcnn_aognet-12m_c4_1x_coco.py",
    "atss/atss_dgnet-r50_fpn_1x_coco.py",
    "mask_rcnn/mask-rcnn_dgnet-r50_fpn_1x_coco.py",
)
STEPS = [leaf if leaf in QUICK else pytest.param(leaf, marks=pytest.mark.slow) for leaf in LEAVES]


def load(leaf):
    cfg = Config.fromfile(FOLDER / leaf)
    init_default_scope(cfg.default_scope)
    return cfg


def small(cfg):
    """The config with 16 regions and 30 proposals."""
    train, test = cfg.model.train_cfg, cfg.model.test_cfg
    if "rpn_proposal" in train:
        train.rpn_proposal.max_per_img = test.rpn.max_per_img = 30
        for stage in train.rcnn if isinstance(train.rcnn, list) else [train.rcnn]:
            stage.sampler.num = 16
    return cfg


def photographs(cfg, count=1):
    """Samples of the validation set with their annotations, short side at most 128."""
    masks = any(t.get("with_mask") for t in cfg.train_dataloader.dataset.pipeline)
    dataset = DATASET_TYPES.build(
        dict(
            type="CocoDataset",
            data_root=str(DATASETS / "coco"),
            ann_file="annotations/instances_val2017.json",
            data_prefix=dict(img="val2017/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True, with_mask=masks),
                dict(type="Resize", scale=(192, 128), keep_ratio=True),
                dict(type="PackDetInputs"),
            ],
        )
    )
    return pseudo_collate([dataset[i] for i in range(count)])


def test_the_set_of_configs():
    wanted = {
        f"{task}_rcnn/{task}-rcnn_aognet-{size}_{neck}_1x_coco.py"
        for task in ("mask", "faster")
        for size in ("12m", "40m", "60m")
        for neck in ("fpn", "c4")
    }
    wanted |= {f"faster_rcnn/faster-rcnn_dgnet-{b}_fpn_1x_coco.py" for b in ("r50", "r101", "x50")}
    wanted |= {
        f"mask_rcnn/mask-rcnn_dgnet-{base}_{neck}_1x_coco.py"
        for base in ("r50", "r101")
        for neck in ("fpn", "c4")
    }
    others = {
        "retinanet/retinanet_aognet-40m_fpn_1x_coco.py",
        "cascade_rcnn/cascade-mask-rcnn_aognet-40m_fpn_1x_coco.py",
        "detr/detr_aognet-12m_8xb2-150e_coco.py",
        "atss/atss_dgnet-r50_fpn_1x_coco.py",
    }
    assert set(LEAVES) == wanted | others
    assert set(QUICK) <= set(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_data_without_python_imports(leaf):
    tree = ast.parse((FOLDER / leaf).read_text())
    assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))
    assert all(isinstance(node, ast.Assign) for node in tree.body)


@pytest.mark.grid
@pytest.mark.parametrize("leaf", LEAVES)
def test_configs_say_what_their_name_says(leaf):
    cfg = load(leaf)
    backbone = cfg.model.backbone
    c4 = "_c4_" in leaf
    model = leaf.split("_fpn")[0].split("_c4")[0].split("_8xb2")[0].split("_")[-1]
    is_dgnet = model.startswith("dgnet")
    name = model.replace("-", "_") + ("_released" if model in ("aognet-12m", "aognet-40m") else "")
    assert (backbone.type, backbone.variant) == ("DGNet" if is_dgnet else "AOGNet", name)
    assert backbone.frozen_stages == 1 and backbone.norm_eval
    assert backbone.norm_cfg == dict(type="BN", requires_grad=False)
    assert bool(backbone.get("start_as_base")) == is_dgnet
    assert cfg.model.type.startswith("Gram") == is_dgnet
    wanted = (DG_VARIANTS if is_dgnet else AOG_VARIANTS)[name].preprocessing
    images = cfg.model.data_preprocessor
    assert (tuple(images.mean), tuple(images.std)) == (wanted.mean, wanted.std)
    assert images.bgr_to_rgb == (wanted.channel_order == "RGB")
    assert images.pad_size_divisor == (16 if c4 else 32)
    assert cfg.custom_imports.imports == ["gram_backbones.mmdet"]
    # The 1x schedule of MMDetection: batch 16, 12 epochs.
    assert cfg.auto_scale_lr.base_batch_size == 16 and cfg.train_dataloader.batch_size == 2
    if not leaf.startswith("detr"):
        single = leaf.startswith(("retinanet", "atss"))
        assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[1].milestones == [8, 11]
        assert cfg.optim_wrapper.optimizer.lr == (0.01 if single else 0.02)


@pytest.mark.grid
@pytest.mark.parametrize("leaf", LEAVES)
def test_channels_of_neck_and_heads_agree_with_the_backbone(leaf):
    model = load(leaf).model
    with torch.device("meta"):
        backbone = MODELS.build(model.backbone)
    if "neck" in model:
        assert list(model.neck.in_channels) == list(backbone.out_channels)
        assert backbone.size_divisibility == 32
        return
    with torch.device("meta"):
        stage = MODELS.build(model.roi_head.shared_head)
    assert model.rpn_head.in_channels == model.rpn_head.feat_channels == stage.in_channels
    assert (stage.in_channels,) == backbone.out_channels
    assert model.roi_head.bbox_roi_extractor.out_channels == stage.in_channels
    heads = [model.roi_head.bbox_head, model.roi_head.get("mask_head")]
    assert {head.in_channels for head in heads if head} == {stage.out_channels}
    assert backbone.size_divisibility == 16


@pytest.mark.grid
@needs_coco
@pytest.mark.parametrize("leaf", STEPS)
def test_a_training_step_and_a_prediction_on_a_photograph(leaf):
    cfg = small(load(leaf))
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    optimizer = build_optim_wrapper(detector, cfg.optim_wrapper)
    parameters = dict(detector.named_parameters())
    without_gradient = []
    optimizer.optimizer.register_step_pre_hook(
        lambda *_: without_gradient.extend(
            n for n, p in parameters.items() if p.requires_grad and p.grad is None
        )
    )
    data = photographs(cfg)
    before = {n: v.clone() for n, v in detector.state_dict().items()}
    losses = detector.train().train_step(data, optimizer)
    assert all(value.isfinite().all() for value in losses.values())
    assert not without_gradient
    moved = {n for n, v in detector.state_dict().items() if not torch.equal(before[n], v)}
    trainable = {n for n, p in parameters.items() if p.requires_grad}
    assert moved <= trainable and len(moved) > 0.9 * len(trainable)
    with torch.no_grad():
        result = detector.eval().test_step(data)[0]
    assert result.pred_instances.bboxes.shape[1] == 4
    assert ("masks" in result.pred_instances) == ("mask" in leaf)


def in_bf16(module):
    """The module under autocast, its results in float32 again."""
    forward = module.forward

    def run(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            features = forward(*args, **kwargs)
        assert {f.dtype for f in features} == {torch.bfloat16}
        return tuple(f.float() for f in features)

    module.forward = run


@pytest.mark.slow
@pytest.mark.grid
@needs_coco
@pytest.mark.parametrize("bf16", ("none", "backbone", "detector"))
@pytest.mark.parametrize(
    "leaf",
    (
        "mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py",
        pytest.param("mask_rcnn/mask-rcnn_aognet-12m_c4_1x_coco.py", marks=pytest.mark.slow),
        "faster_rcnn/faster-rcnn_dgnet-r50_fpn_1x_coco.py",
        pytest.param("detr/detr_aognet-12m_8xb2-150e_coco.py", marks=pytest.mark.slow),
    ),
)
def test_inference_detector_on_an_image_file(leaf, bf16):
    """Frozen, as the configs are; mmcv's NMS takes float32 alone, so R-CNN's heads stay in it."""
    if bf16 == "detector" and not leaf.startswith("detr"):
        pytest.skip("mmcv's NMS takes no bfloat16")
    cfg = small(load(leaf))
    cfg.test_dataloader.dataset.pipeline[1].scale = (256, 192)
    if "rcnn" in cfg.model.test_cfg:
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    detector = MODELS.build(cfg.model).eval()
    detector.cfg = cfg
    if bf16 == "backbone":
        in_bf16(detector.backbone)
    image = next((DATASETS / "coco/val2017").glob("*.jpg"))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16 == "detector"):
        result = inference_detector(detector, str(image))
    found = result.pred_instances
    assert len(found) and found.scores.isfinite().all() and found.bboxes.isfinite().all()
    assert isinstance(detector.backbone, (gram.AOGNetBackbone, gram.DGNetBackbone))
