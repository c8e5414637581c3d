"""Turns failures of the machine, such as too little memory, into errors that say how to continue."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vet.errors import TrainingError, UserError

MEMORY = (
    'out of memory',
    "can't allocate memory",
    'not enough memory',
    'cannot allocate memory',
    'alloc_failed',
    'bad_alloc',
)
WORKERS = ('dataloader worker', 'shared memory', 'too many open files')
PEERS = ('gloo', 'nccl', 'connection closed by peer', 'connection reset by peer', 'broken pipe')


@contextmanager
def failures_named(how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Within this context, failures of the machine become TrainingErrors.

    how_to_continue: gives a text of what was saved, and what to do next.
    """
    try:
        yield
    except UserError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise TrainingError(f'{reason} {how_to_continue()}') from error


def reason_of(error: Exception) -> str | None:
    """The reason, and help. None: the error is no failure of the machine."""
    text = str(error).strip()
    first = (text.splitlines() or [type(error).__name__])[0]
    lower = text.lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in lower for word in MEMORY):
        return (
            f'there is not enough memory ({first}). End other programs that use memory. Or begin anew in '
            'another work folder with a smaller train.dataloader.batch_size_per_gpu and a larger '
            'train.accumulate, with train.gradient_checkpointing=True, or with fewer '
            'train.dataloader.workers_per_gpu.'
        )
    if any(word in lower for word in WORKERS):
        return (
            f'a process that reads images ended ({first}). Mostly the system has killed it for want of '
            'memory or of shared memory (/dev/shm). Free some memory.'
        )
    if _has_peers() and (
        isinstance(error, torch.distributed.DistError) or any(word in lower for word in PEERS)
    ):
        return f'another process of this run ended ({first}). The message of that process says why.'
    if isinstance(error, OSError):
        return f'the system refuses: {first}.'
    return None


def _has_peers() -> bool:
    return int(os.environ.get('WORLD_SIZE', 1)) > 1
