"""The line at the start of an evaluation: closed edges, and distance from training's gate."""

import logging
import re

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from gram_backbones import DGNet
from gram_backbones.dgnet.gate_report import report_gates
from gram_backbones.dgnet.network import DGStage
from gram_backbones.dgnet.rewire import rewire

from .open_edges import SMALL, settle, small_network


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
    from gram_backbones import record_connectivity

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
    d2.GramTrainer.test(None, DGNet(SMALL["basic"]), evaluators=[])
    assert len([r for r in caplog.records if r.message.startswith("DG-Net: ")]) == 1


@pytest.mark.parametrize("stage", ("val", "test"))
def test_mmdetection_s_evaluations_begin_with_it(monkeypatch, caplog, stage):
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from mmengine.runner import Runner

    from gram_backbones.mmdet.runs import GramRunner

    runner = GramRunner.__new__(GramRunner)  # its constructor takes a whole run
    monkeypatch.setattr(Runner, "call_hook", lambda self, fn_name, **kwargs: None)
    runner.logger = logging.getLogger("gram_backbones")
    runner.model = DGNet(SMALL["basic"])
    caplog.set_level(logging.INFO, logger="gram_backbones")
    x = torch.randn(1, 3, 64, 64)
    for name in ("before_train_epoch", f"before_{stage}_epoch", f"before_{stage}_iter"):
        runner.call_hook(name)
    evaluate(runner.model.eval(), [x, x])
    assert len([r for r in caplog.records if r.message.startswith("DG-Net: ")]) == 1
