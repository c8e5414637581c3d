"""What a process does with memory that a step frees: it keeps it for the next one, where glibc would give it
back to the system.

Pages that come back are cleared and mapped anew, which took a sixth of a training step on a CPU. Entered
by trainer.py, through door.py.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of glibc's mallopt (malloc.h)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # all from the heap, and nothing of it back
USUAL = {
    MMAP_MAX: 65536,
    MMAP_THRESHOLD: 32 << 20,
    TRIM_THRESHOLD: 64 << 20,
}  # to which glibc's own rules lead in training


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within, memory that was freed stays with the process. After it, what is free is given back.

    Of training on a CPU, with glibc, where no variable of the environment sets its rules; nothing happens
    elsewhere.
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
        glibc.malloc_trim(0)


def _set(glibc: ctypes.CDLL, rules: dict[int, int]) -> None:
    for name, value in rules.items():
        glibc.mallopt(name, value)
