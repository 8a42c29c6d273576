"""Training that a resumed run repeats exactly: seeds as functions of position, as in `d2.replay`.

MMEngine seeds each process and each loader worker once. Their random states go on from there,
depend on the number of workers, and are not in its checkpoints. Here

- what the model draws is seeded by the iteration (`GramRunner.call_hook`),
- what augmentation draws is seeded by the sample's position in the sampler's stream:
  :class:`NumberedSampler` numbers the indices, :class:`SeededDataset` seeds by the number.

The order of samples is MMEngine's own: a function of the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import Sampler

from ..seeding import AUGMENTATION, seeded

# They keep something between calls, or draw from a generator of their own, and no checkpoint holds
# it; ReduceOnPlateau steps at an evaluation, after the checkpoint was written.
_STATEFUL = (
    "Albu",
    "BatchSyncRandomResize",
    "CachedMixUp",
    "CachedMosaic",
    "EarlyStoppingHook",
    "ReduceOnPlateau",
)


class Draw(int):
    """An index of a sample; ``key`` is its epoch and its position in this process's stream."""

    key: tuple[int, int]


class NumberedSampler(Sampler):
    """A sampler of indices, each a :class:`Draw`.

    Args:
        sampler: config of the sampler.
        dataset: what it samples from; samplers of batches look at it too.
        seed: the sampler's seed; None where MMEngine draws one.
    """

    def __init__(self, sampler: dict, dataset: Any, seed: int | None):
        self._sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset
        self._epoch = self._first = 0
        if hasattr(self._sampler, "skip"):  # MMEngine asks whether there is one
            self.skip = self._skip

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Draw]:
        for position, index in enumerate(self._sampler, self._first):
            draw = Draw(index)
            draw.key = self._epoch, position
            yield draw

    def set_epoch(self, epoch: int) -> None:
        """Number the next epoch's samples, and let the sampler shuffle them anew."""
        self._epoch = epoch
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def _skip(self, samples: int) -> None:
        self._sampler.skip(samples)
        self._first = samples


class SeededDataset:
    """A data set whose augmentation depends on the :class:`Draw` only, not on who computes it.

    Everything else is the data set's own: hooks read its attributes and replace its pipeline.
    """

    def __init__(self, dataset: dict, seed: int):
        # The rank is taken here: a loader's worker process does not know it.
        key = AUGMENTATION, seed, get_rank()
        self.__dict__.update(_dataset=DATASETS.build(dataset), _key=key)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, Draw):
            return self._dataset[index]
        with seeded(*self._key, *index.key):
            return self._dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        # Pickle asks before there is a data set; torch's loader asks for __getitems__.
        if name == "_dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)


def is_replayable(dataloader: Any) -> bool:
    """Whether :func:`replayable` covers a training loader: a config, not a built one."""
    return isinstance(dataloader, dict) and all(
        isinstance(dataloader.get(part), dict) for part in ("dataset", "sampler")
    )


def replayable(dataloader: dict, seed: int) -> dict:
    """The config of a training loader whose samples are the same for any number of workers."""
    return {
        **dataloader,
        "dataset": dict(type=SeededDataset, dataset=dataloader["dataset"], seed=seed),
        "sampler": dict(type=NumberedSampler, sampler=dataloader["sampler"]),
    }


def resume_line(runner: Runner, loop: BaseLoop, dataloader: Any) -> str:
    """What a resumed run repeats and what it does not: one line for the log."""
    different = []
    if not is_replayable(dataloader):
        different.append("the samples (train_dataloader is not a config)")
    if runner._randomness_cfg.get("seed") is None:
        different.append("the order of the samples (randomness.seed is not set)")
    if isinstance(loop, EpochBasedTrainLoop):
        if any(isinstance(h, CheckpointHook) and not h.by_epoch for h in runner.hooks):
            different.append("an unfinished epoch, which starts again (by_epoch=False)")
    elif not isinstance(loop, IterBasedTrainLoop):
        different.append(f"what {type(loop).__name__} does (not a loop of MMEngine's)")
    elif getattr(loop, "fast_forward_on_resume", False):
        different.append("the samples (fast_forward_on_resume=True)")
    found = sorted(set(_types((runner.cfg, dataloader))))
    different += [f"the state of {name}" for name in found if name.startswith(_STATEFUL)]
    if torch.cuda.is_available():
        different.append("some CUDA operations")
    if not different:
        return "exact resume: a resumed run repeats this one bit for bit"
    return "exact resume: a resumed run may differ in " + "; ".join(different)


def _types(value: Any) -> Iterator[str]:
    """The names of all types in a config."""
    if isinstance(value, (dict, Config)):
        kind = value.get("type")
        yield from [kind] if isinstance(kind, str) else []
        value = [item for _, item in value.items()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item)
