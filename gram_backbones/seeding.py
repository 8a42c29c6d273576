"""Random states as functions of a position in the training, which a resumed run can work out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

MODEL, AUGMENTATION = 0, 1  # first part of a seed's key: what it is for


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch, all devices, from a sequence of non-negative integers."""
    torch.manual_seed(_seed_host(*key))


def _seed_host(*key: int) -> int:
    state = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.default_generator.manual_seed(int(state[2]))
    return int(state[2])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed python, numpy and torch's CPU inside, and put their states back afterwards.

    Generators of other devices are left alone: augmentation runs on the CPU.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_host(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
