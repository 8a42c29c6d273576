"""Losses that explode, modules whose output is not finite, and a line in a long silence."""

import logging
import time
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from gram_backbones.divergence import (
    FACTOR,
    PATIENCE,
    DivergenceError,
    LossWatch,
    first_not_finite,
    require_finite,
)
from gram_backbones.heartbeat import heartbeat, progress


def first_explosion(losses):
    watch = LossWatch()
    return next((i for i, loss in enumerate(losses) if watch.explosion(loss)), None)


def test_a_loss_explodes_after_as_many_iterations_as_documented():
    usual = [3.0 - 0.01 * i for i in range(100)]
    high = usual[-1] * FACTOR * 2
    assert first_explosion(usual + [high] * 50) == 100 + PATIENCE - 1
    assert first_explosion(usual + [high] * (PATIENCE - 1) + usual) is None  # it recovers
    assert first_explosion([1e-6] * 50 + [0.5] * 50) is None  # a small loss that grows
    assert first_explosion([0.0] + [7.0] * 50) is None


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x, *, poison=0.0):
        return {"loss": [self.second(self.first(x) + poison).sum()]}


@pytest.mark.parametrize(
    ("change", "poison", "said"),
    (
        (lambda m: None, 0.0, None),
        (lambda m: m.second.weight.data.fill_(torch.inf), 0.0, "second (Linear), whose weights"),
        (lambda m: None, torch.nan, "second (Linear), whose input is not finite"),
    ),
)
def test_the_first_module_is_found(change, poison, said):
    model = Halves()
    change(model)
    found, output = first_not_finite(model, lambda: model(torch.ones(1, 2), poison=poison))
    assert found == said if said is None else found.startswith(said)
    assert output.keys() == {"loss"} and not model.second._forward_hooks
    found, output = first_not_finite(model, lambda: model("no tensor"))  # its error is not told
    assert output is None


def test_weights_that_are_not_finite_are_not_saved():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    model.register_buffer("mask", torch.tensor([-torch.inf]))
    require_finite(model, None)
    model[1].running_var.fill_(torch.nan)
    with pytest.raises(DivergenceError, match="1.running_var is not finite.* good one is a.pth"):
        require_finite(model, "a.pth")


def test_a_line_comes_where_there_is_silence_only(caplog):
    caplog.set_level("INFO")
    log = logging.getLogger("gram_backbones.test")
    with heartbeat("The evaluation", log, seconds=0.2):
        for _ in range(8):
            log.info("busy")
            time.sleep(0.05)
        assert "goes on" not in caplog.text
        time.sleep(0.7)
    lines = [record.message for record in caplog.records if "goes on" in record.message]
    assert 1 <= len(lines) <= 3 and lines[0] == "The evaluation goes on, after 0 s"
    assert not log.handlers


def test_a_line_that_cannot_be_written_does_not_end_the_next(caplog):
    """Bug: on a full disk the thread ended with a trace, next to the run's own sentence."""
    log, handler = logging.getLogger("gram_backbones.test"), logging.NullHandler()
    handler.handle = Mock(side_effect=OSError("full"))
    log.addHandler(handler)
    try:
        with caplog.at_level("INFO", log.name), heartbeat("The evaluation", log, seconds=0.1):
            time.sleep(0.5)
    finally:
        log.removeHandler(handler)
    assert handler.handle.call_count > 1


def test_without_a_terminal_a_loop_says_how_far_it_is(monkeypatch, capsys):
    times = iter((0, 10, 21, 30, 42))
    monkeypatch.setattr("gram_backbones.heartbeat.time.monotonic", lambda: next(times))
    assert [*progress("abcde", "epoch 3/90")] == [*"abcde"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["epoch 3/90: 2 of 5 batches in 21 s", "epoch 3/90: 4 of 5 batches in 42 s"]
