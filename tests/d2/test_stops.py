"""Trainings in Detectron2 that diverge or are told to stop: what is saved and what is said."""

import os
import signal

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import gram_backbones.d2 as gram
from gram_backbones.divergence import DivergenceError
from tests.d2.test_engine import cfg, demo, state_of  # noqa: F401  fixtures


def at_iteration(trainer, number, act):
    """Let a trainer do something before one of its iterations."""
    step = trainer.run_step

    def run_step():
        if trainer.iter == number:
            act()
        step()

    trainer.run_step = run_step
    return trainer


def test_a_loss_that_is_not_finite_is_traced_to_its_module(cfg, demo, tmp_path):  # noqa: F811
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.DATASETS.TEST = 1, ()
    trainer = gram.GramTrainer(cfg)
    conv = trainer.model.backbone.bottom_up.res4.transition[0][0]
    poison = lambda: torch.nn.init.constant_(conv.weight, torch.nan)  # noqa: E731
    with pytest.raises(DivergenceError, match="iteration 1: Predicted boxes .* contain") as caught:
        at_iteration(trainer, 1, poison).train()
    said = str(caught.value)
    assert "of backbone.bottom_up.res4.transition.0.0 (Conv2d), whose weights are not" in said
    assert said.count(str(demo / "train")) == 2  # images
    assert f"last good checkpoint: {tmp_path / 'model_0000000.pth'}" in said
    assert [file.name for file in tmp_path.glob("*.pth")] == ["model_0000000.pth"]
    with pytest.raises(DivergenceError, match="transition.0.0.weight is not finite, so no checkp"):
        trainer.checkpointer.save("bad")
    assert not (tmp_path / "bad.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize("during", ("training", "evaluation"))
def test_sigterm_saves_and_the_resumed_run_ends_alike(during, cfg, tmp_path):  # noqa: F811
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 4, (), 100
    cfg.TEST.EVAL_PERIOD, cfg.TEST.PICTURES.NUM = (2, 0) if during == "evaluation" else (0, 0)
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    gram.GramTrainer(cfg).train()
    torch.manual_seed(0)
    cfg.OUTPUT_DIR = str(tmp_path / "stopped")
    stopped = gram.GramTrainer(cfg)
    kill = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    if during == "training":
        at_iteration(stopped, 2, kill)  # before its forward pass
    else:
        stopped.model.backbone.register_forward_pre_hook(
            lambda module, _: None if module.training else kill()
        )
    with pytest.raises(SystemExit) as ended:
        stopped.train()
    assert ended.value.code == 143
    assert (tmp_path / "stopped/last_checkpoint").read_text() == "model_0000001.pth"
    resumed = gram.GramTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    first, second = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())
