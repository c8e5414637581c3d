"""Batches: which images make up which step, on which process, drawn from (seed, epoch); and the loader that reads them."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vet.datasets.image import open_image
from vet.engine.seeding import mix, seeded
from vet.errors import UserError


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor        # (B, 3, H, W), normalised
    labels: torch.Tensor        # (B,)
    weights: torch.Tensor       # (B,) 1, or 0 for an image that only fills an empty share


@dataclass(frozen=True)
class Order:
    """The order of training: global batch i of an epoch is a slice of that epoch's permutation; process r of `world`
    takes every world-th image of it from r, so that any number of processes sees the same global batches."""

    length: int
    batch_size: int             # images in a global batch, over all processes
    accumulate: int             # batches per step
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def batches(self) -> int:
        """Global batches in an epoch; the last may be smaller."""
        return math.ceil(self.length / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch; the last may have fewer batches."""
        return math.ceil(self.batches / self.accumulate)

    def step_size(self, step: int) -> int:
        """Images in a step (counted from the start of training), over all its batches and processes."""
        size = self.batch_size * self.accumulate
        return min(size, self.length - step % self.steps * size)

    def step_batches(self, step: int) -> int:
        """Global batches in a step."""
        return min(self.accumulate, self.batches - step % self.steps * self.accumulate)

    def keys(self, epoch: int, first_step: int = 0) -> Iterator[list[tuple[int, int, int]]]:
        """This process's batches of an epoch as (epoch, image index, weight)."""
        shuffle = torch.Generator().manual_seed(mix(self.seed, 'order', epoch))
        order = torch.randperm(self.length, generator=shuffle).tolist()
        for batch in range(first_step * self.accumulate, self.batches):
            whole = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield [(epoch, i, 1) for i in whole[self.rank::self.world]] or [(epoch, whole[0], 0)]


class Seeded(Dataset):
    """`dataset` with `transform`, read by (epoch, index, weight); augmentation draws from (seed, epoch, index) alone.

    A UserError comes back in place of the item, since raising it in a worker would bury its message.
    """

    def __init__(self, dataset: Dataset, transform: Callable[[Any], torch.Tensor], seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, int, int] | UserError:
        epoch, index, weight = key
        try:
            image, label = self.dataset[index]
            with seeded(self.seed, 'image', epoch, index):
                return self.transform(open_image(image)), label, weight
        except UserError as error:
            return error
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            return UserError(f'image {index} of {type(self.dataset).__name__} cannot be read or transformed: '
                             f'{type(error).__name__}: {error}. Look at the dataset and at train.transform.')


def _collate(items: list) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, labels, weights = zip(*items)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(weights, dtype=torch.float32))


def load(dataset: Dataset, transform: Callable[[Any], torch.Tensor], seed: int, keys: Iterator[list[tuple[int, int, int]]]
         | Sequence[list[tuple[int, int, int]]], workers: int, device: torch.device) -> Iterator[Batch]:
    """Reads the batches that `keys` lists, in order, with `workers` processes, onto `device`."""
    loader = DataLoader(Seeded(dataset, transform, seed), batch_sampler=keys, num_workers=workers, collate_fn=_collate,
                        pin_memory=device.type == 'cuda')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='This DataLoader will create')     # the config chose the workers
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield Batch(*(tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.labels, batch.weights)))
