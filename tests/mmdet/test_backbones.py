"""The MMDetection adapter: names, norms, freezing, weights, shared heads, image sizes."""

import copy
import importlib
import logging
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmdet.registry import HOOKS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torchvision import models

import gram_backbones.mmdet as gram
from gram_backbones import AOGNet, DGNet, list_models, record_connectivity
from gram_backbones.aognet import VARIANTS, AOGNetVariant
from gram_backbones.mmdet.runs import check_data, set_data_root

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "mmdet_configs"
TINY = AOGNetVariant((2, 4, 4, 2), (1, 1, 2, 1), (8, 16, 24, 32, 48))
FIXED_BN = dict(type="BN", requires_grad=False)


def family(name):
    return "AOGNet" if name.startswith("aognet") else "DGNet"


def build(type_, **kwargs):
    return MODELS.build(dict(type=type_, **kwargs))


def tiny(type_, **kwargs):
    """A small network of a family."""
    return build(type_, variant=TINY if type_ == "AOGNet" else "dgnet_r18", **kwargs)


def tiny_stage(type_, **kwargs):
    return build(type_, variant=TINY if type_ == "AOGStage" else "dgnet_r18", **kwargs)


@pytest.fixture
def log():
    """What MMEngine's print_log prints."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    handler = Handler()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_registered_names_and_a_second_import():
    for name in ("AOGNet", "DGNet", "AOGStage", "DGStage", "GramFasterRCNN", "GramMaskRCNN"):
        assert name in MODELS
    assert "PicturesHook" in HOOKS
    for _ in range(2):
        importlib.reload(gram)
        Config.fromfile(CONFIGS / "retinanet/retinanet_aognet-40m_fpn_1x_coco.py")


@pytest.mark.grid
@pytest.mark.parametrize("name", list_models())
def test_features_have_the_stated_channels_and_strides(name):
    backbone = build(family(name), variant=name, out_indices=(0, 2)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert isinstance(features, tuple)
    assert [f.shape[1] for f in features] == list(backbone.out_channels)
    wanted = [(64, 96), (16, 24)] if "cifar" in name else [(16, 24), (4, 6)]
    assert [f.shape[2:] for f in features] == wanted
    assert not hasattr(backbone, "res5") and not hasattr(backbone, "layer4")


@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
@pytest.mark.parametrize("norm", ("BN", "SyncBN", "GN"))
def test_norms(type_, norm):
    cfg = dict(type=norm, num_groups=8) if norm == "GN" else dict(type=norm, eps=1e-3)
    backbone = tiny(type_, norm_cfg=dict(**cfg, requires_grad=False))
    kind = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}[norm]
    norms = [m for m in backbone.modules() if isinstance(m, kind)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())
    if norm == "GN":
        for m in norms:
            divisors = [g for g in range(1, 9) if m.num_channels % g == 0]
            assert m.num_groups == max(divisors)
    else:
        assert {m.eps for m in norms} == {1e-3}
    others = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert len(others) == (0 if norm == "GN" else len(norms))


@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
def test_sync_bn_runs_in_one_process_as_mmengine_reverts_it(type_):
    backbone = tiny(type_, norm_cfg=dict(type="SyncBN"), norm_eval=False)
    plain = revert_sync_batchnorm(copy.deepcopy(backbone))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in plain.modules())
    x = torch.randn(2, 3, 64, 64)
    sum(f.sum() for f in plain(x)).backward()
    backbone.eval(), plain.eval()
    assert backbone.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
def test_norm_eval_and_freezing_hold_from_construction_on(type_):
    backbone = tiny(type_, frozen_stages=1, norm_eval=True)
    fixed = ("stem.", "res2.") if type_ == "AOGNet" else ("conv1.", "bn1.", "layer1.", "graphs.0.")

    def check(norms_train):
        for name, module in backbone.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (norms_train and not f"{name}.".startswith(fixed))
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad != name.startswith(fixed), name

    check(False)
    backbone.eval()
    backbone.train()
    check(False)
    backbone.norm_eval = False
    backbone.train()
    check(True)
    before = copy.deepcopy(backbone.state_dict())
    backbone(torch.randn(2, 3, 64, 64))
    moved = [n for n, v in backbone.state_dict().items() if not torch.equal(v, before[n])]
    assert moved and all("running" in n or "num_batches" in n for n in moved)
    assert not any(n.startswith(fixed) for n in moved)


def test_norm_eval_fixes_statistics_and_leaves_the_affine_terms_to_training():
    backbone = tiny("AOGNet", norm_eval=True)
    before = copy.deepcopy(backbone.state_dict())
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, before[n]) for n, v in backbone.state_dict().items())
    assert backbone.res5.blocks[0].norm.weight.grad is not None
    fixed = tiny("AOGNet", norm_cfg=FIXED_BN)
    assert not fixed.res5.blocks[0].norm.weight.requires_grad


@pytest.mark.slow
def test_fresh_fixed_norms_keep_features_in_bounds():
    """As under Detectron2: they normalise nothing, and sums over the grammar would explode."""
    for name in VARIANTS:
        stages = tuple(range(len(VARIANTS[name].words)))
        backbone = build("AOGNet", variant=name, out_indices=stages, norm_cfg=FIXED_BN).eval()
        with torch.no_grad():
            features = backbone(torch.randn(1, 3, 64, 64))
        assert all(0.01 < feature.std() < 100 for feature in features)


@pytest.mark.slow
@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
def test_checkpointing_gives_the_same_gradients(type_):
    plain, cheap = tiny(type_, norm_eval=False), tiny(type_, norm_eval=False, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, cheap):
        sum(f.square().mean() for f in model(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), cheap.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)
    assert all(torch.equal(v, cheap.state_dict()[n]) for n, v in plain.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(variant="aognet_13m"), "aognet_13m.*aognet_12m"),
        (dict(out_indices=(0, 4)), r"\(0, 4\).*\(0, 1, 2, 3\)"),
        (dict(out_indices=()), r"out_indices is \(\); allowed are"),
        (dict(out_indices=3), "out_indices is 3; allowed are"),
        (dict(out_indices=(1, 1)), r"out_indices is \(1, 1\); allowed are distinct"),
        (dict(frozen_stages=5), "frozen_stages is 5; allowed are -1 to 4"),
        (dict(norm_cfg=dict(type="XN")), "XN.*SyncBN"),
        (dict(norm_cfg=dict(eps=1)), "eps.*SyncBN"),
        (dict(norm_cfg=dict(type="LN")), "LN.*SyncBN"),
        (dict(norm_cfg=None), "norm_cfg is None"),
        (dict(norm_cfg=dict(type="BN", num_groups=2)), "num_groups.*BN does not take"),
        (dict(norm_cfg=dict(type="GN", num_groups=0)), "num_groups is 0"),
    ),
)
def test_a_bad_argument_is_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        gram.AOGNetBackbone(**{"variant": TINY, **arguments})


# Weights


def randomised(model):
    for value in model.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    return model


def core(type_, num_classes=0):
    """The network whose weights a file holds: with a classifier, as ImageNet training leaves it."""
    if type_ == "AOGNet":
        return randomised(AOGNet(TINY, num_classes=num_classes))
    return randomised(DGNet("dgnet_r18", num_classes=num_classes))


@pytest.mark.grid
@pytest.mark.parametrize("wrapper", ("bare", "detector", "prefix"))
@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
def test_pretrained_weights_fill_the_backbone(type_, wrapper, tmp_path, log):
    source = core(type_, num_classes=3).state_dict()
    prefix = {"bare": "", "detector": "backbone.", "prefix": "teacher.net."}[wrapper]
    torch.save({"state_dict": {prefix + k: v for k, v in source.items()}}, tmp_path / "w.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    if wrapper == "prefix":
        init_cfg["prefix"] = "teacher.net."
    backbone = tiny(type_, out_indices=(1, 2), init_cfg=init_cfg)
    backbone.init_weights()
    state = backbone.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in state.items())
    assert any(f"loaded {len(state)} of {len(state)} tensors from" in line for line in log)
    assert backbone.init_cfg == init_cfg


@pytest.mark.grid
@pytest.mark.parametrize("layout", ("bare", "mmdet", "detectron2", "prefix"))
@pytest.mark.parametrize("type_", ("AOGNet", "DGNet"))
def test_pretrained_weights_fill_the_shared_head(type_, layout, tmp_path):
    source = core(type_).state_dict()
    part = {k: v for k, v in source.items() if k.startswith(("res5.", "layer4.", "graphs.3."))}
    part = {k.removeprefix("res5."): v for k, v in part.items()}
    rest = {f"backbone.{k}": v for k, v in source.items() if k.startswith(("stem.", "conv1."))}
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    if layout == "prefix":
        source = {f"teacher.{k}": v for k, v in source.items()}
        init_cfg["prefix"] = "teacher"
    elif layout != "bare":
        head = {"mmdet": "roi_head.shared_head.", "detectron2": "roi_heads.res5."}[layout]
        source = {**rest, **{head + k: v for k, v in part.items()}}
    torch.save(source, tmp_path / "w.pth")
    stage = tiny_stage("AOGStage" if type_ == "AOGNet" else "DGStage", init_cfg=init_cfg)
    stage.init_weights()
    assert all(torch.equal(value, part[name]) for name, value in stage.state_dict().items())


@pytest.mark.grid
@pytest.mark.parametrize(("start_as_base", "biases"), ((None, {9, -9}), (False, {3, -3})))
def test_a_base_network_s_weights_start_the_backbone_as_it(tmp_path, start_as_base, biases):
    base = models.resnet18()
    torch.save(base.state_dict(), tmp_path / "w.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    backbone = tiny("DGNet", init_cfg=init_cfg, start_as_base=start_as_base)
    backbone.init_weights()
    assert torch.equal(backbone.layer4[1].conv2.weight, base.layer4[1].conv2.weight)
    assert set(backbone.graphs["0"].routers[0].bias.tolist()) == biases


@pytest.mark.grid
@pytest.mark.parametrize("damage", ("missing", "shape", "foreign", "text"))
def test_weights_that_do_not_fill_the_backbone_stop_the_run(tmp_path, damage):
    state = core("AOGNet").state_dict()
    name = "res4.blocks.1.ops.0.conv1.0.weight"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:1]
    elif damage == "foreign":
        state, name = {"conv1.weight": torch.zeros(1)}, "stem.0.0.weight"
    torch.save(state, tmp_path / "w.pth")
    if damage == "text":
        (tmp_path / "w.pth").write_text("weights")
        name = "cannot read .*w.pth: "
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    backbone = tiny("AOGNet", init_cfg=init_cfg)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match=name):
        backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_a_missing_file_stops_a_new_run_and_not_a_resumed_one(tmp_path):
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "gone.pth"))
    x = torch.randn(1, 3, 64, 64)
    new, resumed = (tiny("AOGNet", init_cfg=init_cfg) for _ in range(2))
    new.init_weights()
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        new(x)
    resumed.init_weights()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(resumed)))
    # As a runner loads it: the backbone is a part of what is loaded.
    detector = nn.ModuleDict({"backbone": resumed})
    detector.load_state_dict({"head.weight": torch.zeros(1)}, strict=False)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        resumed(x)  # nothing of the backbone was filled
    detector.load_state_dict(detector.state_dict())
    assert len(resumed(x)) == 4
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        twin(x)


def test_other_initialisations_are_mmengine_s():
    backbone = tiny("AOGNet", init_cfg=dict(type="Constant", val=0.25, layer="Conv2d"))
    backbone.init_weights()
    assert (backbone.stem[0][0].weight == 0.25).all()


@pytest.mark.parametrize(
    ("arguments", "warns"),
    (
        (dict(frozen_stages=0, norm_eval=False), True),
        (dict(norm_eval=True), True),
        (dict(norm_eval=False), False),
    ),
)
def test_fixed_random_parts_are_warned_about(arguments, warns, log):
    tiny("AOGNet", **arguments).init_weights()
    assert any("stay random" in line for line in log) == warns


@pytest.mark.slow
def test_the_advice_to_train_from_scratch_works_in_an_inheriting_config(log, tmp_path):
    leaf = CONFIGS / "faster_rcnn/faster-rcnn_aognet-12m_fpn_1x_coco.py"
    MODELS.build(Config.fromfile(leaf).model.backbone).init_weights()
    advice = next(line for line in log if "stay random" in line)
    settings = re.search(r"set (.*)\.$", advice)[1].replace(" and ", ", ")
    file = tmp_path / "mine.py"
    file.write_text(f"_base_ = {str(leaf)!r}\nmodel = dict(backbone=dict({settings}))\n")
    log.clear()
    backbone = MODELS.build(Config.fromfile(file).model.backbone)
    backbone.init_weights()
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any("stay random" in line for line in log)


# Detectors


def small_detector(leaf, **changes):
    """A shipped config's model with few proposals."""
    cfg = Config.fromfile(CONFIGS / leaf)
    cfg.merge_from_dict(changes)
    return MODELS.build(cfg.model)


def sample(shape):
    return DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), batch_input_shape=shape
        )
    )


SMALL_DGNET = {"model.backbone.variant": "dgnet_r18", "model.neck.in_channels": [64, 128, 256, 512]}


def moves_of(detector):
    """By how much the edges of a small image move when a large one joins its batch."""
    torch.manual_seed(0)
    for graph in detector.backbone.graphs.values():
        for router in graph.routers:
            nn.init.normal_(router.weight, std=0.1)
    large, small = torch.randn(1, 3, 128, 160), torch.randn(1, 3, 64, 64)
    batch = torch.zeros(2, 3, 128, 160)
    batch[0], batch[1, :, :64, :64] = large[0], small[0]
    with torch.no_grad(), record_connectivity(detector.eval()) as records:
        detector.predict(small, [sample((64, 64))])
        detector.predict(batch, [sample((128, 160)), sample((64, 64))])
    return sum((m[1][1] - m[0][0]).abs().mean().item() for m in records.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "leaf",
    ("faster_rcnn/faster-rcnn_dgnet-r50_fpn_1x_coco.py", "atss/atss_dgnet-r50_fpn_1x_coco.py"),
)
def test_detectors_pass_the_images_sizes(leaf):
    stock = {"GramFasterRCNN": "FasterRCNN", "GramATSS": "ATSS"}
    detectors = []
    for plain in (True, False):
        torch.manual_seed(0)
        type_ = Config.fromfile(CONFIGS / leaf).model.type
        changes = {**SMALL_DGNET, "model.type": stock[type_] if plain else type_}
        detectors.append(small_detector(leaf, **changes))
    assert 0 < moves_of(detectors[1]) < 0.7 * moves_of(detectors[0])


def test_image_sizes_belong_to_a_copy_of_the_detector_too():
    """MMEngine's EMA hook copies models."""
    leaf = "faster_rcnn/faster-rcnn_dgnet-r50_fpn_1x_coco.py"
    detector = small_detector(leaf, **SMALL_DGNET).eval()
    twin = copy.deepcopy(detector)
    seen = []
    twin.backbone.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        twin.predict(torch.zeros(1, 3, 64, 64), [sample((60, 50))])
    assert seen == [{"valid_sizes": [(60, 50)]}]
    assert detector._image_sizes.sizes is None


def test_absent_mmdetection_is_one_clear_sentence():
    code = "import sys; sys.modules['mmdet'] = None; import gram_backbones.mmdet"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "gram_backbones.mmdet needs MMDetection" in last and "tools/setup.sh" in last


def test_mmcv_s_compiled_operators_are_never_imported_here():
    for path in (ROOT / "gram_backbones").rglob("*.py"):
        assert not re.search(r"mmcv(\.| import )ops", path.read_text()), path


# Runs


def test_data_root_is_replaced_wherever_a_path_begins_with_it():
    cfg = Config.fromfile(CONFIGS / "mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py")
    set_data_root(cfg, "/elsewhere/coco")
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root == "/elsewhere/coco/"
    file = "/elsewhere/coco/annotations/instances_val2017.json"
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == file
    assert cfg.model.backbone.type == "AOGNet"
    assert Config.fromstring(cfg.pretty_text, ".py").val_evaluator.ann_file == file
    cfg = Config(dict(data_root="data/mine", a="data/mine/a.json", b="data/mine_val/a.json"))
    set_data_root(cfg, "/x")
    assert (cfg.data_root, cfg.a, cfg.b) == ("/x/", "/x/a.json", "data/mine_val/a.json")
    with pytest.raises(ValueError, match="no top-level data_root"):
        set_data_root(Config(dict(model=dict())), "x")


def test_missing_data_is_listed_with_its_paths(tmp_path):
    inner = dict(data_root=str(tmp_path), ann_file="a.json", data_prefix=dict(img="images/"))
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type="RepeatDataset", dataset=inner))))
    cfg.train_evaluator = dict(ann_file=str(tmp_path / "truth.json"))
    with pytest.raises(FileNotFoundError) as caught:
        check_data(cfg)
    assert str(tmp_path / "a.json") in str(caught.value)
    assert str(tmp_path / "images") in str(caught.value)
    assert str(tmp_path / "truth.json") in str(caught.value)
    (tmp_path / "truth.json").write_text("{}")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "images").mkdir()
    check_data(cfg)
