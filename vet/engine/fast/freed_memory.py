"""Keeps the memory that a step frees for the next step. glibc would give the memory back to the system.

The system clears and maps returned pages again, which took a sixth of a training step on a CPU. trainer.py
enters this context, through door.py. A server that has nothing to do gives memory back by
`give_back_freed_memory`.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# names of glibc's mallopt (malloc.h)
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # all memory is from the heap, and the heap does not shrink
# glibc's own rules end at these values in a training
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within this context, freed memory stays with the process. Afterwards, free memory is given back.

    Acts only in training on a CPU, with glibc, if no environment variable sets glibc's rules.
    """
    is_set = 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '') or any(
        name.startswith('MALLOC_') for name in os.environ
    )
    if device.type != 'cpu' or platform.libc_ver()[0] != 'glibc' or is_set:
        yield
        return
    glibc = ctypes.CDLL(None)
    _set(glibc, KEEPING)
    try:
        yield
    finally:
        _set(glibc, USUAL)
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Gives the memory that is free back to the system. Does nothing without glibc."""
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)


def _set(glibc: ctypes.CDLL, rules: dict[int, int]) -> None:
    for name, value in rules.items():
        glibc.mallopt(name, value)
