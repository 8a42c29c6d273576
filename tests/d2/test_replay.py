"""The order of Detectron2's training samples, and what augmentation draws for them."""

from itertools import islice

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils.events import EventStorage

import gram_backbones.d2 as gram
from gram_backbones.d2.engine import HISTORY
from gram_backbones.d2.replay import (
    ResumedSampler,
    SeededDataset,
    build_replayable_train_loader,
)
from tests.d2.test_engine import cfg, demo  # noqa: F401

# ruff: noqa: F811 (fixtures are arguments)


@pytest.mark.parametrize("batches", (0, 1, 5, 17))
@pytest.mark.parametrize("batch_size", (1, 2, 3))
def test_a_resumed_sampler_goes_on_with_the_same_batches(batches, batch_size):
    sizes = [(4, 3), (3, 4), (4, 3), (5, 4), (3, 4), (4, 3), (2, 1)]
    stream = np.random.default_rng(0).integers(len(sizes), size=400).tolist()
    groups = [int(w > h) for w, h in sizes]

    def grouped(sampler):
        records = [
            {"width": sizes[i][0], "height": sizes[i][1], "draw": (p, i)} for p, i in sampler
        ]
        batches = AspectRatioGroupedDataset(records, batch_size)
        return [[record["draw"] for record in batch] for batch in islice(batches, 40)]

    whole = grouped(ResumedSampler(stream, batch_size, 0, groups))
    resumed = grouped(ResumedSampler(stream, batch_size, batches, groups))
    assert resumed[: 40 - batches] == whole[batches:]

    plain = list(ResumedSampler(stream, batch_size, batches, None))
    assert plain == list(enumerate(stream))[batches * batch_size :]


@pytest.mark.grid
@pytest.mark.parametrize("grouping", (True, False))
@pytest.mark.parametrize("workers", (0, 2))
def test_batches_do_not_depend_on_loader_workers(workers, grouping, cfg):
    """One that starts in the middle with workers continues one that has none."""
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping

    def take(count, start, workers):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = islice(build_replayable_train_loader(cfg, start), count)
        return [[(s["image_id"], int(s["image"].sum())) for s in batch] for batch in batches]

    whole = take(6, 0, 0)
    assert take(6, 0, workers) == whole
    assert take(3, 3, workers) == whole[3:]


def test_augmentation_depends_on_the_position_and_leaves_the_model_s_randomness_alone():
    class Draws:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return np.random.rand(), torch.rand(1).item(), __import__("random").random()

    dataset = SeededDataset(Draws(), 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, other = dataset[(7, 0)], dataset[(8, 0)]
    assert torch.equal(before, torch.get_rng_state())
    np.random.rand()
    assert dataset[(7, 0)] == first
    assert all(a != b for a, b in zip(first, other))


def test_a_batch_that_processes_cannot_share_is_refused(cfg, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 2; allowed are multiples of 4"):
        build_replayable_train_loader(cfg)


def test_loaders_wait_for_their_workers_as_long_as_the_config_says(cfg):
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TIMEOUT = 1, 7
    assert gram.GramTrainer.build_train_loader(cfg).dataset.timeout == 7
    assert gram.GramTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]).timeout == 7
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"  # Detectron2's own loader
    assert gram.GramTrainer.build_train_loader(cfg).dataset.timeout == 7


def test_a_trainer_keeps_the_last_values_of_a_scalar_only():
    """Bug: Detectron2 keeps a million of each, so that memory grows with the iterations."""
    trainer = object.__new__(gram.GramTrainer)
    trainer._hooks = []
    with EventStorage() as trainer.storage:
        trainer.before_train()
        for value in range(HISTORY + 5):
            trainer.storage.put_scalar("total_loss", value)
        values = trainer.storage.history("total_loss").values()
    assert [value for value, _ in values] == [*range(5, HISTORY + 5)]
