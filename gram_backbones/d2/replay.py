"""Training that a resumed run repeats exactly: seeds and data order as functions of position.

Stock Detectron2 restarts the sampler at its first index and continues whatever random state the new
process has. Here the state is a function of the configured seed and

- the iteration, for what the model draws (:class:`ReseedHook`),
- the position in the stream of samples, for what augmentation draws (:class:`SeededDataset`),

and the stream itself is continued where it stopped (:class:`ResumedSampler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MapDataset,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..lost_processes import guard_loader
from ..seeding import AUGMENTATION, MODEL, seed_everything, seeded
from .datasets import NamingMapper, skippable


class ReseedHook(HookBase):
    """Seeds everything from (seed, rank, iteration) before each batch is fetched."""

    def __init__(self, seed: int):
        self._seed = seed

    def before_step(self) -> None:
        """Seed the host for the batch that follows."""
        seed_everything(MODEL, self._seed, comm.get_rank(), self.trainer.iter)


class SeededDataset(Dataset):
    """Maps draws ``(position, index)`` to samples whose augmentation depends on the position only.

    By position, not by iteration: aspect ratio grouping may hold a sample back for many batches.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self._dataset = dataset
        # The rank is taken here: a loader's worker process may not know it.
        self._key = AUGMENTATION, seed, comm.get_rank()

    def __len__(self) -> int:
        return len(cast(Sized, self._dataset))  # torch declares no length

    def __getitem__(self, draw: tuple[int, int]):
        position, index = draw
        with seeded(*self._key, position):
            return self._dataset[index]


class ResumedSampler(Sampler):
    """An infinite sampler's draws ``(position, index)`` from the point that training reached.

    Args:
        sampler: yields the indices of this process.
        batch_size: samples per batch of this process.
        batches: number of batches that training has consumed.
        groups: group of each sample for aspect ratio grouping, where batches are filled group by
            group; None where batches follow the stream.
    """

    def __init__(
        self, sampler: Iterable[int], batch_size: int, batches: int, groups: list[int] | None
    ):
        self._sampler = sampler
        self._batch_size = batch_size
        self._batches = batches
        self._groups = groups

    def __iter__(self) -> Iterator[tuple[int, int]]:
        stream = enumerate(self._sampler)
        if self._groups is None:
            yield from islice(stream, self._batches * self._batch_size, None)
            return
        # Play the grouping through. What it still holds when the last batch is out comes first:
        # too few of any group to fill a batch, so grouping them again gives the same state.
        held: dict[int, list[tuple[int, int]]] = {}
        done = 0
        while done < self._batches:
            draw = next(stream)
            group = held.setdefault(self._groups[draw[1]], [])
            group.append(draw)
            if len(group) == self._batch_size:
                group.clear()
                done += 1
        yield from sorted(draw for group in held.values() for draw in group)
        yield from stream


def is_replayable(cfg: CfgNode) -> bool:
    """Whether :func:`build_replayable_train_loader` covers a config."""
    return cfg.SEED >= 0 and cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"


def training_records(cfg: CfgNode) -> list[dict]:
    """The records of ``DATASETS.TRAIN``, filtered as Detectron2's own loader filters them."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def build_replayable_train_loader(
    cfg: CfgNode, start_iter: int = 0, mapper: Callable[[dict], dict] | None = None
):
    """Detectron2's training loader for ``cfg``, from iteration ``start_iter`` on.

    ``mapper`` turns a data set's record into a training sample; Detectron2's ``DatasetMapper`` by
    default.

    A resumed loader goes on with exactly the batches of one that was not stopped, whatever
    ``DATALOADER.NUM_WORKERS`` is in either.

    Raises:
        ValueError: a sampler other than ``TrainingSampler``, no fixed ``SEED``, or a batch that
            processes cannot share equally.
    """
    if not is_replayable(cfg):
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r} and SEED is {cfg.SEED}; "
            "training that can be repeated takes 'TrainingSampler' and a seed of at least 0"
        )
    dicts = training_records(cfg)
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(item["width"] > item["height"]) for item in dicts]
    mapper = NamingMapper(mapper or DatasetMapper(cfg, True), skippable(cfg, len(dicts)))
    dataset = MapDataset(DatasetFromList(dicts, copy=False), mapper)
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
    if rest or batch_size < 1:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; allowed are multiples of "
            f"{comm.get_world_size()}, the number of processes"
        )
    sampler = ResumedSampler(
        TrainingSampler(len(dicts), seed=cfg.SEED), batch_size, start_iter, groups
    )
    # Detectron2's own loader makes an iterable data set, whose workers share out the stream: its
    # order would depend on their number and on where it begins. Here the sampler stays in this
    # process, and workers return samples in its order.
    options = dict(
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=worker_init_reset_seed,
        # A generator of its own: making an iterator would otherwise draw from the global one, once
        # in every process, and a resumed run would draw once more than one that was not stopped.
        generator=torch.Generator().manual_seed(cfg.SEED),
    )
    samples = SeededDataset(dataset, cfg.SEED)
    if groups is None:
        loader = DataLoader(
            samples, batch_size, collate_fn=trivial_batch_collator, drop_last=True, **options
        )
        return guard_loader(loader, cfg.DATALOADER.TIMEOUT)
    loader = guard_loader(DataLoader(samples, batch_size=None, **options), cfg.DATALOADER.TIMEOUT)
    return AspectRatioGroupedDataset(loader, batch_size)
