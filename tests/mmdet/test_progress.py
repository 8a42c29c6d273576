"""The lines of a training, with MMEngine's own hook beside ours."""

from types import SimpleNamespace

import pytest

pytest.importorskip("mmdet", reason="MMDetection is not installed")

from mmengine.hooks import LoggerHook

from gram_backbones.mmdet.progress import EarlyProgressHook


@pytest.mark.parametrize("options", [{}, {"ignore_last": False, "interval": 2}])
@pytest.mark.parametrize("iterations", [3, 7])  # an epoch, by iteration also beyond it
def test_every_line_comes_once(options, iterations, monkeypatch):
    lines = []
    monkeypatch.setattr("gram_backbones.mmdet.progress._QUIET_SECONDS", -1)  # a line is always due
    hooks = [LoggerHook(**{"interval": 50, **options}), EarlyProgressHook()]
    runner = SimpleNamespace(
        hooks=hooks,
        train_dataloader=range(3),
        experiment_name="",
        logger=SimpleNamespace(info=lines.append),
        visualizer=SimpleNamespace(add_scalars=lambda *args, **kwargs: None),
        log_processor=SimpleNamespace(get_log_after_iter=lambda _, index, mode: ({}, index)),
    )
    for index in range(iterations):
        runner.iter = index
        for hook in hooks:
            hook.after_train_iter(runner, index)
    assert [line for line in lines if isinstance(line, int)] == [*range(iterations)]
