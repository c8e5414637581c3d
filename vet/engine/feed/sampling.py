"""The samplers of a run, and what a sampler may draw."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from vet.datasets.base import by_task, objective_of, targets_of
from vet.errors import UserError
from vet.registry import SAMPLERS

COPIES = 2**32  # more than any number of epochs


def samplers_of(entry: Mapping[str, object] | None, dataset: object) -> tuple[Any, ...]:
    """The sampler of each task of a dataset, as a config entry says. (): images are shuffled."""
    if entry is None:
        return ()
    found = []
    for task_data in by_task(dataset).values():
        objective = objective_of(task_data)
        sampler = SAMPLERS.build(
            dict(entry),
            images=len(task_data),
            targets=partial(targets_of, task_data),
            names=list(task_data.classes),
            kind=objective.targets if objective else 'one class',
        )
        drawn(sampler, 0, torch.Generator().manual_seed(0), len(task_data))
        found.append(sampler)
    return tuple(found)


def drawn(sampler: Any, epoch: int, generator: torch.Generator, images: int) -> list[int]:
    """The images that a sampler draws. UserError if it fails, or draws anything but images."""
    name = type(sampler).__name__
    try:
        length = len(sampler)
        order = [int(index) for index in sampler.draw(epoch, generator)]
    except UserError:
        raise
    except Exception as error:  # a user's own sampler may raise any error
        raise UserError(
            f'the sampler {name!r} fails at epoch {epoch}: {type(error).__name__}: {error}. A sampler needs '
            'len(sampler), and draw(epoch, generator), which gives len(sampler) numbers of images.'
        ) from error
    if not order or len(order) != length:
        raise UserError(
            f'the sampler {name!r} draws {len(order):,} images, but len(sampler) is {length:,}. Draw '
            'len(sampler) images in each epoch, at least 1.'
        )
    if wrong := next((index for index in order if not 0 <= index < images), None):
        raise UserError(
            f'the sampler {name!r} draws the image {wrong}, but the {images:,} training images have the '
            f'numbers 0 to {images - 1}.'
        )
    return order


def numbered(epoch: int, order: Sequence[int]) -> list[tuple[int, int]]:
    """(the number of the draw, image) for each image of an epoch.

    Augmentation draws from the number: the epoch. Further copies of an image have numbers that no epoch has.
    """
    seen: Counter[int] = Counter()
    pairs = []
    for index in order:
        pairs.append((epoch + COPIES * seen[index], index))
        seen[index] += 1
    return pairs
