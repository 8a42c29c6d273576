"""Whole detectors from one file: two networks in one, C4 heads, predictors, MMEngine's runner."""

import copy
import logging

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmdet.registry import MODELS
from mmengine.runner import Runner

import gram_backbones.mmdet  # noqa: F401 (registers)
from gram_backbones import AOGNet
from gram_backbones.aognet import AOGStage
from gram_backbones.mmdet.runs import GramRunner
from gram_backbones.weights.detector import fit_detector
from gram_backbones.weights.files import WeightError, WeightFile
from tests.weights.test_loading import TINY, settled


class Detector(nn.Module):
    """Tensors where a C4 detector has them."""

    def __init__(self, classes=4, anchors=3):
        super().__init__()
        self.backbone = AOGNet(TINY, out_features=("res4",))
        self.rpn_head = nn.ModuleDict({"rpn_cls": nn.Conv2d(8, anchors, 1)})
        self.roi_head = nn.Module()
        self.roi_head.shared_head = AOGStage(TINY, 3)
        self.roi_head.bbox_head = nn.ModuleDict({"fc_cls": nn.Linear(8, classes + 1)})
        settled(self)

    def parts(self, prefix=""):
        names = ("backbone", "roi_head.shared_head")
        return {f"{prefix}{name}.": self.get_submodule(name) for name in names}


def file_of(model):
    return WeightFile("file.pth", copy.deepcopy(model.state_dict()))


def test_student_and_teacher_get_their_own():
    model = nn.ModuleDict({"student": Detector(), "teacher": Detector()})
    parts = model["student"].parts("student.") | model["teacher"].parts("teacher.")
    file = file_of(model)
    for tensors in (file.tensors, {f"module.{n}": v for n, v in file.tensors.items()}):
        found = fit_detector(model.state_dict(), parts, WeightFile("f", tensors), heads="exact")
        assert len(found.networks) == 2 and not found.resized
        counters = {n for n in file.tensors if n.endswith("num_batches_tracked")}
        assert found.values.keys() >= file.tensors.keys() - counters
        assert all(torch.equal(value, file.tensors[n]) for n, value in found.values.items())


def test_the_report_names_nothing_that_was_loaded():
    model = Detector()
    found = fit_detector(model.state_dict(), model.parts(), file_of(model))
    lines = [line for _, line in found.report()]
    count = len(model.backbone.state_dict()) + len(model.roi_head.shared_head.state_dict())
    assert lines == [
        f"loaded {count} of {count} tensors from file.pth",
        "loaded 4 tensors of neck and heads from file.pth",
    ]


@pytest.mark.parametrize("bare", (False, True))
def test_what_the_detector_has_no_place_for_is_named(bare):
    model = Detector()
    file = file_of(AOGNet(TINY) if bare else model)
    if bare:
        file = WeightFile("f", {f"backbone.{n}": v for n, v in file.tensors.items()})
    file.tensors["mask_head.weight"] = torch.zeros(1)
    file.tensors["pixel_mean"] = torch.zeros(3)
    found = fit_detector(model.state_dict(), model.parts(), file)
    assert found.others == ("mask_head.weight",)
    assert "not in this detector: mask_head.weight" in found.report()[-1][1]


@pytest.mark.parametrize("place", ("roi_head.shared_head", "rpn_head.rpn_cls"))
def test_what_is_not_finite_is_refused(place):
    model = Detector()
    file = file_of(model)
    name = next(n for n in file.tensors if n.startswith(place))
    file.tensors[name][0] = float("nan")
    with pytest.raises(WeightError, match="not finite"):
        fit_detector(model.state_dict(), model.parts(), file)


def test_predictors_alone_may_be_of_other_classes():
    file = file_of(Detector(classes=7))
    model = Detector()
    found = fit_detector(model.state_dict(), model.parts(), file, heads="other_classes")
    names = ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias")
    assert found.resized == names and not found.values.keys() & set(names)
    assert [level for level, _ in found.report()][-1] == logging.WARNING
    with pytest.raises(WeightError, match="of another shape: roi_head.bbox_head.fc_cls"):
        fit_detector(model.state_dict(), model.parts(), file, heads="exact")
    with pytest.raises(WeightError, match="of another shape: rpn_head.rpn_cls"):
        fit_detector(model.state_dict(), model.parts(), file_of(Detector(anchors=15)))


def test_a_backbone_s_file_is_enough_only_where_it_may_be():
    model, source = Detector(), settled(AOGNet(TINY))
    file = file_of(source)
    found = fit_detector(model.state_dict(), model.parts(), file)
    for name, value in found.values.items():
        whole = name.removeprefix("backbone.").replace("roi_head.shared_head.", "res5.")
        assert torch.equal(value, file.tensors[whole])
    for heads in ("other_classes", "exact"):
        with pytest.raises(WeightError, match="missing: rpn_head"):
            fit_detector(model.state_dict(), model.parts(), file, heads=heads)
    with pytest.raises(ValueError, match="heads is 'some'"):
        fit_detector(model.state_dict(), model.parts(), file, heads="some")


# MMEngine's runner


class Small(nn.Module):
    """A detector with MMDetection's backbone."""

    def __init__(self, type="AOGNet", variant=TINY, **kwargs):
        super().__init__()
        self.backbone = MODELS.build(dict(type=type, variant=variant, **kwargs))
        self.head = nn.Linear(48, 2)

    def init_weights(self):
        self.backbone.init_weights()

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return self.backbone(inputs)


def runner_of(model, folder, kind=GramRunner, **kwargs):
    options = dict(default_scope="mmdet", experiment_name=f"{folder.name}_{id(model)}")
    return kind(model, work_dir=str(folder), **options, **kwargs)


@pytest.mark.slow
def test_an_averaging_hook_evaluates_what_was_loaded(tmp_path):
    source = settled(Small())
    torch.save({"state_dict": source.state_dict()}, tmp_path / "trained.pth")
    own = source.state_dict()
    for kind in (Runner, GramRunner):
        hooks = [dict(type="EMAHook")]
        runner = runner_of(Small(), tmp_path, kind, custom_hooks=hooks)
        runner.call_hook("before_run")
        runner.load_checkpoint(str(tmp_path / "trained.pth"))
        runner.call_hook("before_test_epoch")
        state = runner.model.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in state.items()), kind


def test_a_file_without_counters_does_without_a_missing_init_cfg(tmp_path):
    source = settled(Small())
    state = {n: v for n, v in source.state_dict().items() if not n.endswith("batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "trained.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "gone.pth"))
    x = torch.randn(1, 3, 64, 64)
    model = Small(init_cfg=init_cfg)
    model.init_weights()
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        model(x)
    runner_of(model, tmp_path).load_checkpoint(str(tmp_path / "trained.pth"))
    assert len(model(x)) == 4
    model = Small(init_cfg=init_cfg)
    model.init_weights()
    model.load_state_dict(state, strict=False)
    assert len(model(x)) == 4


def test_a_detector_on_the_base_network_starts_one_on_a_dgnet(tmp_path, caplog):
    source = settled(Small("DGNet", "dgnet_r18", edges="chain"))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "trained.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "gone.pth"))
    model = Small("DGNet", "dgnet_r18", init_cfg=init_cfg)
    model.init_weights()
    runner = runner_of(model, tmp_path)
    runner.logger.addHandler(caplog.handler)  # MMEngine's loggers stand alone
    with caplog.at_level(logging.INFO):
        runner.load_checkpoint(str(tmp_path / "trained.pth"))
    assert "start near it" in caplog.text and "not used" not in caplog.text
    assert set(model.backbone.graphs["0"].routers[0].bias.tolist()) == {9, -9}
    assert len(model(torch.randn(1, 3, 64, 64))) == 4
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in source.state_dict().items())


def test_a_new_run_stops_at_a_missing_init_cfg_before_it_trains(tmp_path):
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "gone.pth"))
    runner = runner_of(Small(init_cfg=init_cfg), tmp_path)
    runner.model.init_weights()
    with pytest.raises(WeightError, match="there is no weight file .*gone.pth"):
        runner.load_or_resume()


def test_a_refused_init_cfg_can_be_corrected(tmp_path):
    source = settled(AOGNet(TINY)).state_dict()
    (tmp_path / "w.pth").write_text("no weights")
    model = Small(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth")))
    for _ in range(2):
        with pytest.raises(WeightError):
            model.init_weights()
    torch.save(source, tmp_path / "w.pth")
    model.init_weights()
    state = model.backbone.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in state.items())
