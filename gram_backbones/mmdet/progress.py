"""A hook that prints the first lines of a training; MMEngine's logger waits for 50 iterations."""

from __future__ import annotations

import time
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

_QUIET_SECONDS = 10  # longest time without a line during training, if iterations are shorter


@HOOKS.register_module()
class EarlyProgressHook(Hook):
    """Prints losses and the time left when ``LoggerHook`` does not yet.

    Lines come after the first two iterations of a process, and whenever ten seconds have passed
    since the last.
    """

    priority = "BELOW_NORMAL"  # after IterTimerHook, which estimates the time left

    def __init__(self):
        self._printed = 0
        self._last = time.monotonic()

    def after_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Print a line if one is due."""
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        own = any(_prints(hook, len(runner.train_dataloader), batch_idx) for hook in loggers)
        now = time.monotonic()
        if not own and self._printed >= 2 and now - self._last <= _QUIET_SECONDS:
            return
        self._printed, self._last = self._printed + 1, now
        if not own:
            _, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(line)


def _prints(hook: LoggerHook, length: int, batch_idx: int) -> bool:
    """Whether MMEngine's hook prints a line; it does so too at the end of a short epoch."""
    if hook.every_n_inner_iters(batch_idx, hook.interval):
        return True
    return batch_idx + 1 == length and (not hook.ignore_last or length <= hook.interval)
