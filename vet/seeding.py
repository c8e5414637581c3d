"""Randomness as a function of its use: (seed, epoch, image) for augmentation, (seed, step, process) for a
step.

No state passes from one draw to the next. So a resumed run, and any number of workers, draw the same.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


def mix(*key: int | str) -> int:
    """63 bits that depend on every part of `key`, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'little') >> 1


def seed_everything(*key: int | str) -> None:
    """Seeds Python's, NumPy's and torch's generators (those of all devices) with `mix(*key)`."""
    number = _seed_cpu(*key)
    if _has_device():
        torch.manual_seed(number)


def _seed_cpu(*key: int | str) -> int:
    """Seeds the generators of the CPU. Returns the seed."""
    random.seed(number := mix(*key))
    np.random.seed(number % 2**32)
    torch.random.default_generator.manual_seed(number)
    return number


@cache
def _has_device() -> bool:
    """Whether there are generators beside the CPU's.

    Without a GPU, torch.manual_seed would format a traceback.
    """
    return torch.accelerator.is_available()


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Draws within this context, on the CPU, depend only on `key`. Later draws do not change."""
    with draws_apart():
        _seed_cpu(*key)
        yield


@contextmanager
def draws_apart(device: torch.device | None = None) -> Iterator[None]:
    """Draws within this context change no later draw, on the CPU and on a GPU `device`."""
    python = random.getstate()
    array = np.random.get_state()
    with torch.random.fork_rng([device] if device is not None and device.type == 'cuda' else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
