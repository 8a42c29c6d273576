"""Trainings that diverge: losses that are not finite or explode, and where it began.

The rules, for every framework: a training stops in the iteration whose loss is not finite, before
the optimiser's step; and after `PATIENCE` iterations in a row whose loss is more than `FACTOR`
times its lowest running mean, or `FACTOR` where that mean is below 1. Weights that are not finite
are never written to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 10
FACTOR = 100.0
_DECAY = 0.95  # of the running mean of the loss
_SHOWN = 8  # images that a message names


class DivergenceError(FloatingPointError):
    """A training that diverged; the message is one sentence."""


class LossWatch:
    """Follows the total loss of a training and says when it explodes.

    Examples:
        >>> watch = LossWatch()
        >>> reasons = [watch.explosion(loss) for loss in [2.0] * 5 + [900.0] * PATIENCE]
        >>> reasons[-2:]
        [None, 'the loss, now 900, was above 200 in 10 iterations, 100 times its lowest mean']
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._lowest = inf
        self._high = 0

    def explosion(self, loss: float) -> str | None:
        """What is wrong with the loss of one more iteration; None if nothing is."""
        limit = FACTOR * max(1.0, self._lowest)  # near 0 a factor says little
        if loss > limit:
            self._high += 1
            if self._high >= PATIENCE:
                return (
                    f"the loss, now {loss:.4g}, was above {limit:.4g} in {PATIENCE} iterations, "
                    f"{FACTOR:g} times its lowest mean"
                )
            return None
        self._high = 0
        self._mean = loss if self._mean is None else _DECAY * self._mean + (1 - _DECAY) * loss
        self._lowest = min(self._lowest, self._mean)
        return None


def not_finite(losses: Mapping[str, Any]) -> str | None:
    """Which losses are not finite; None if all are.

    Examples:
        >>> not_finite({"loss_cls": torch.tensor(torch.nan), "loss_box": torch.tensor(1.0)})
        'loss_cls is nan'
    """
    values = {name: torch.as_tensor(value).detach() for name, value in losses.items()}
    bad = {name: value for name, value in values.items() if not value.isfinite().all()}
    return ", ".join(f"{name} is {value.tolist()}" for name, value in bad.items()) or None


def diverged(
    iteration: int,
    reason: str,
    *,
    images: Iterable[str],
    module: str | None,
    checkpoint: str | Path | None,
) -> DivergenceError:
    """The error to raise.

    Args:
        iteration: as the framework's log counts it.
        reason: what is wrong with the loss.
        images: paths of the batch.
        module: from :func:`first_not_finite`.
        checkpoint: the last one that was written.

    Examples:
        >>> found = dict(images=["a.jpg"], module="fc (Linear)", checkpoint=None)
        >>> print(diverged(7, "loss is nan", **found))
        training diverged at iteration 7: loss is nan; first output that is not finite: of fc \
(Linear); images of the batch: a.jpg; no checkpoint was written; try a lower learning rate or a \
longer warm-up
    """
    names = [str(image) for image in images]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    found = "all modules' outputs are finite"
    if module:
        found = f"first output that is not finite: of {module}"
    saved = f"last good checkpoint: {checkpoint}" if checkpoint else "no checkpoint was written"
    return DivergenceError(
        f"training diverged at iteration {iteration}: {reason}; {found}; images of the batch: "
        f"{', '.join(names[:_SHOWN]) or 'unknown'}{more}; {saved}; try a lower learning rate or a "
        "longer warm-up"
    )


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> tuple[str | None, Any]:
    """The first module whose output is not finite when a forward pass is repeated.

    Args:
        model: the network, with the weights of the pass.
        run: repeats the pass. Its error is nothing new: a pass with such values may raise anything.

    Returns:
        The module's path and class, and what is wrong before it, if there is such a module; and
        what ``run`` returned, None after an error.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].weight, torch.nan)
        >>> first_not_finite(model, lambda: model(torch.ones(1, 2)).sum())[0]
        '0 (Linear), whose weights are not finite'
    """
    found: list[str] = []

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if found or _finite(output):
                return
            said = f"{path or 'the model'} ({type(module).__name__})"
            if not _finite([*module.parameters(), *module.buffers()]):
                said += ", whose weights are not finite"
            elif not _finite((args, kwargs)):
                said += ", whose input is not finite"
            found.append(said)

        return hook

    handles = [
        module.register_forward_hook(look(path), with_kwargs=True)
        for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            output = run()
    except Exception:  # see `run`
        output = None
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), output


def require_finite(model: nn.Module, checkpoint: str | Path | None) -> None:
    """Make sure that weights may be written.

    Raises:
        DivergenceError: some are not finite; the message names the first, and the last checkpoint.

    Examples:
        >>> require_finite(nn.Linear(2, 2), None)
    """
    # Other buffers may hold infinities: masks of attentions do.
    statistics = (
        b for b in model.named_buffers() if b[0].endswith(("running_mean", "running_var"))
    )
    for name, value in chain(model.named_parameters(), statistics):
        if not _finite(value):
            saved = f"the last good one is {checkpoint}" if checkpoint else "there is none before"
            raise DivergenceError(
                f"training diverged: {name} is not finite, so no checkpoint was written; {saved}"
            )


def _finite(value: Any) -> bool:
    tensors = (t for t in _tensors(value) if t.is_floating_point() and t.device.type != "meta")
    return all(isfinite(t.detach().abs().max()) for t in tensors if t.numel())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
