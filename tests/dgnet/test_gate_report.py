"""The line at the start of an evaluation: closed edges, and distance from training's gate."""

import copy
import logging
import pickle
import re

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from gram_backbones import DGNet, record_connectivity
from gram_backbones.dgnet import DGStage
from gram_backbones.dgnet.gate_report import report_gates
from gram_backbones.dgnet.rewire import rewire
from tests.dgnet.open_edges import SMALL, check_close, settle, small_network


class Lines(list):
    def __call__(self, level, line):
        self.append((level, line))


def numbers(line):
    """Closed edges, closed blocks and distance, in per cent."""
    return [float(n) for n in re.findall(r"([\d.]+) %", line)[:3]]


def evaluate(model, images):
    with torch.no_grad():
        for x in images:
            model(x)


def test_the_line_says_how_many_edges_are_closed():
    model, images = small_network("basic")
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, images)
    ((level, line),) = lines  # one line, at the first of several batches
    edges, blocks, distance = numbers(line)
    assert level == logging.INFO and distance == 0
    closed = total = 0
    for graph, matrix in zip(model.graphs.values(), _matrices(model, images[0])):
        size = graph.n_blocks + 2
        total += size * (size - 1) // 2
        closed += size * (size - 1) // 2 - int(matrix.ne(0).sum())
    assert edges == pytest.approx(100 * closed / total, abs=0.051) and edges > 0 and blocks > 0
    assert not model._forward_hooks


def _matrices(model, x):
    with torch.no_grad(), record_connectivity(model) as records:
        model(x)
    return [matrices[0][0] for matrices in records.values()]


def test_the_paper_s_gate_gets_a_warning_with_what_to_do():
    with pytest.warns(UserWarning, match="gate='paper'.*gate='soft'"):
        model = settle(DGNet(SMALL["basic"], gate="paper", side_bias=3.0)).eval()
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [torch.randn(2, 3, 64, 64)])
    ((level, line),) = lines
    assert level == logging.WARNING and numbers(line)[2] > 5
    assert "gate='soft'" in line and "default gate" in line


def test_a_network_of_closed_blocks_gets_a_warning():
    model = settle(DGNet(SMALL["basic"])).eval()
    for graph in model.graphs.values():
        nn.init.constant_(graph.thresholds, 2.0)
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [torch.randn(2, 3, 64, 64)])
    ((level, line),) = lines
    assert level == logging.WARNING and numbers(line)[1] == 100 and "router_bias" in line


def test_the_report_does_not_show_in_others_records():
    model, images = small_network()
    report_gates(model, Lines())
    with record_connectivity(model) as records:
        evaluate(model, images)
    assert {len(found) for found in records.values()} == {len(images)}


def test_an_empty_batch_is_not_the_first():
    model, images = small_network()
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [torch.zeros(0, 3, 64, 64), images[0]])
    assert len(lines) == 1


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("how", ("export", "compile", "jit", "deepcopy", "pickle"))
def test_a_report_that_waits_is_in_nobody_s_way(how):
    model, images = small_network()
    lines = Lines()
    report_gates(model, lines)
    with torch.no_grad():
        if how == "export":
            other = torch.export.export(model, (images[0],)).module()
        elif how == "compile":
            torch._dynamo.reset()
            other = torch.compile(model, fullgraph=True, backend="eager")
        elif how == "jit":
            other = torch.jit.trace(model, images[0], check_trace=False)
        elif how == "deepcopy":
            other = copy.deepcopy(model)
        else:
            other = pickle.loads(pickle.dumps(model))
        got = [other(image) for image in images]
        assert not lines
        check_close(got[1], model(images[1]))
    assert len(lines) == 1


@pytest.mark.parametrize("gate", ("straight_through", "soft"))
def test_the_other_gates_are_those_of_training(gate):
    model = settle(DGNet(SMALL["bottleneck"], gate=gate)).eval()
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [torch.randn(2, 3, 64, 64)])
    assert [level for level, _ in lines] == [logging.INFO] and numbers(lines[0][1])[2] == 0


def test_training_batches_are_not_reported_and_a_new_evaluation_is():
    model = settle(DGNet(SMALL["basic"]))
    lines = Lines()
    x = torch.randn(2, 3, 64, 64)
    report_gates(model, lines)
    model.train()(x)
    assert not lines
    report_gates(model, lines)  # the first one has read nothing: one line for both
    evaluate(model.eval(), [x, x])
    assert len(lines) == 1
    report_gates(model, lines)
    evaluate(model, [x])
    assert len(lines) == 2


def test_a_detector_s_backbone_and_head_share_a_line():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = settle(DGNet(SMALL["basic"], out_features=("res4",)))
            self.head = settle(DGStage(SMALL["basic"]))

        def forward(self, x):
            return self.head(self.backbone(x)["res4"])

    lines = Lines()
    model = Detector().eval()
    report_gates(model, lines)
    evaluate(model, [torch.randn(2, 3, 64, 64)])
    assert len(lines) == 1


def test_rewired_networks_are_reported_and_static_ones_are_not():
    x = torch.randn(2, 3, 64, 64)
    lines = Lines()
    for network in (resnet18(), DGNet(SMALL["basic"], edges="chain")):
        report_gates(network.eval(), lines)
        evaluate(network, [x])
    assert not lines
    network = rewire(resnet18(), ["layer4"], x).eval()
    report_gates(network, lines)
    evaluate(network, [x])
    assert len(lines) == 1


def test_detectron2_s_evaluations_begin_with_it(monkeypatch, caplog):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.engine import DefaultTrainer

    from gram_backbones import d2

    x = torch.randn(1, 3, 64, 64)
    stock = classmethod(lambda cls, cfg, model, evaluators=None: evaluate(model.eval(), [x, x]))
    monkeypatch.setattr(DefaultTrainer, "test", stock)
    caplog.set_level(logging.INFO, logger="gram_backbones")
    cfg = d2.get_config("demo_mask_rcnn_dgnet_r18_fpn")
    d2.GramTrainer.test(cfg, DGNet(SMALL["basic"]), evaluators=[])
    assert len([r for r in caplog.records if r.message.startswith("DG-Net: ")]) == 1


@pytest.mark.parametrize("stage", ("val", "test"))
def test_mmdetection_s_evaluations_begin_with_it(monkeypatch, caplog, stage):
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from mmengine.runner import Runner

    from gram_backbones.mmdet.runs import GramRunner

    runner = GramRunner.__new__(GramRunner)  # its constructor takes a whole run
    monkeypatch.setattr(Runner, "call_hook", lambda self, fn_name, **kwargs: None)
    runner.cfg = {}
    runner.logger = logging.getLogger("gram_backbones")
    runner.model = DGNet(SMALL["basic"])
    caplog.set_level(logging.INFO, logger="gram_backbones")
    x = torch.randn(1, 3, 64, 64)
    for name in ("before_train_epoch", f"before_{stage}_epoch", f"before_{stage}_iter"):
        runner.call_hook(name)
    evaluate(runner.model.eval(), [x, x])
    assert len([r for r in caplog.records if r.message.startswith("DG-Net: ")]) == 1


class Detector(nn.Module):
    """What a framework makes of features: something that is no tensor, of ragged sizes."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        out = self.backbone(x)
        return [{"scores": out[0, : int(torch.randint(1, 5, ()))]}, "instances"]


def test_a_rewired_backbone_in_a_detector_is_reported():
    x = torch.randn(2, 3, 64, 64)
    model = Detector(rewire(resnet18(), ["layer3", "layer4"], x)).eval()
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [x, x])
    assert len(lines) == 1 and lines[0][0] == logging.INFO


def test_features_that_are_not_finite_get_a_warning():
    model, images = small_network()
    lines = Lines()
    report_gates(model, lines)
    evaluate(model, [images[0] * float("nan")])
    assert [level for level, _ in lines] == [logging.WARNING]


def test_a_waiting_report_lets_shapes_be_computed_without_memory():
    model, images = small_network()
    lines = Lines()
    report_gates(model.to("meta"), lines)
    with torch.no_grad():
        model(images[0].to("meta"))
    assert not lines


def test_a_hook_on_the_network_runs_once():
    model, images = small_network()
    lines, calls = Lines(), []

    def scale(_, args):
        calls.append(1)
        return (args[0] / 2,)

    model.register_forward_pre_hook(scale)
    report_gates(model, lines)
    evaluate(model, images[:1])
    assert len(calls) == 1 and numbers(lines[0][1])[2] == 0
