"""Batches: which images make up which step, on which process, drawn from (seed, epoch).

Also the loader of batches.
"""

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vet.datasets.base import ImageData, errors_named, gray_range_of, item_name, item_of
from vet.datasets.image import Range, open_image
from vet.engine.feed.sampling import drawn, numbered
from vet.errors import UserError
from vet.seeding import mix, seeded
from vet.transforms.masks import Jointly, refuse_other_size
from vet.transforms.torchvision import refuse_unless_pixels, split_normalisation

ADVICE = 'Look at the dataset, train.transform and train.transform_on.'
View = Callable[[Any], torch.Tensor]  # the transform of an image
Transforms = Mapping[str | None, View]  # by task; {None: …} for a single task
# batches of (epoch, index, weight)
Keys = Iterator[list[tuple[int, int, int]]] | Sequence[list[tuple[int, int, int]]]


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # (B, 3, H, W), normalised
    labels: torch.Tensor  # (B,) or (B, …): the targets, in their plain form
    weights: torch.Tensor  # (B,) 1, or 0 for an image that only fills an empty share
    task: str | None = None  # the task of all images of the batch, if a dataset has several tasks
    kept: torch.Tensor | None = None  # (B, …) the features that a cache has of the images

    def pin_memory(self) -> 'Batch':
        """For torch's loader: puts the tensors into pages from which a GPU copies by itself."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            weights=self.weights.pin_memory(),
        )

    @property
    def route(self) -> tuple[str | torch.Tensor, ...]:
        """The arguments of a model after the images."""
        return tuple(value for value in (self.task, self.kept) if value is not None)


@dataclass(frozen=True)
class Order:
    """The order of training. Global batch i of an epoch is a slice of that epoch's permutation.

    Process r of `world` takes every world-th image of the batch, from r on. So any number of processes sees
    the same global batches.
    """

    length: int
    batch_size: int  # images in a global batch, over all processes
    accumulate: int  # batches per step
    seed: int
    rank: int = 0
    world: int = 1
    parts: tuple[
        int, ...
    ] = ()  # the number of images of each task, if batches must not mix tasks; (): one task
    samplers: tuple[Any, ...] = ()  # of each task; (): each image comes once in an epoch, shuffled

    @property
    def batches(self) -> int:
        """Global batches in an epoch. The last batch of each task may be smaller."""
        sizes = tuple(map(len, self.samplers)) or self.parts or (self.length,)
        return sum(math.ceil(size / self.batch_size) for size in sizes)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch. The last step may have fewer batches."""
        return math.ceil(self.batches / self.accumulate)

    def step_size(self, step: int) -> int:
        """Images in a step (counted from the start of training), over all its batches and processes."""
        first = step % self.steps * self.accumulate
        return sum(map(len, self._epoch(step // self.steps)[first : first + self.accumulate]))

    def step_batches(self, step: int) -> int:
        """Global batches in a step."""
        return min(self.accumulate, self.batches - step % self.steps * self.accumulate)

    def keys(self, epoch: int, first_step: int = 0) -> Iterator[list[tuple[int, int, int]]]:
        """This process's batches of an epoch as (epoch, image index, weight)."""
        for whole in self._epoch(epoch)[first_step * self.accumulate :]:
            yield [(*key, 1) for key in whole[self.rank :: self.world]] or [(*whole[0], 0)]

    def _epoch(self, epoch: int) -> list[list[tuple[int, int]]]:
        return _shuffled(self.parts or (self.length,), self.batch_size, self.seed, epoch, self.samplers)


@lru_cache(maxsize=2)
def _shuffled(
    parts: tuple[int, ...], batch_size: int, seed: int, epoch: int, samplers: tuple[object, ...] = ()
) -> list[list[tuple[int, int]]]:
    """The global batches of an epoch, as (epoch, index of an image), see `numbered`.

    Batches of several tasks are in random order.
    """
    shuffle = torch.Generator().manual_seed(mix(seed, 'order', epoch))
    batches: list[list[tuple[int, int]]] = []
    for start, size, sampler in zip(accumulate((0, *parts)), parts, samplers or (None,) * len(parts)):
        order = (
            torch.randperm(size, generator=shuffle).tolist()
            if sampler is None
            else drawn(sampler, epoch, shuffle, size)
        )
        pairs = numbered(epoch, [start + index for index in order])
        batches += [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
    if len(parts) > 1:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=shuffle).tolist()]
    return batches


class Seeded(Dataset):
    """`dataset` with the transform of each task. Its keys are (epoch, index, weight).

    Augmentation draws from (seed, epoch, index). In place of raising a UserError, an item is the UserError,
    because a worker would bury the message.
    """

    def __init__(self, dataset: ImageData, transforms: Transforms, seed: int):
        self.dataset = dataset
        self.transforms = transforms
        self.seed = seed
        self._first: dict[str | None, tuple[int, object]] = {}  # by task: an item, and its target

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, Any, int, str | None] | UserError:
        epoch, index, weight = key
        task = self.dataset.task_of(index) if hasattr(self.dataset, 'task_of') else None
        try:
            image, label = item_of(self.dataset, index, task)
            self._refuse_other_form(index, task, label)
            with (
                errors_named(lambda: item_name(self.dataset, index), ADVICE),
                seeded(self.seed, 'image', epoch, index),
            ):
                image = opened(image, gray_range_of(self.dataset, task))
                return *viewed(self.transforms[task], image, label), weight, task
        except UserError as error:
            return error

    def _refuse_other_form(self, index: int, task: str | None, target: object) -> None:
        """UserError if the dataset mixes class numbers with shares of classes."""
        first, other = self._first.setdefault(task, (index, target))
        if isinstance(target, tuple) != isinstance(other, tuple):
            names = item_name(self.dataset, index), item_name(self.dataset, first)
            raise UserError(
                f'{names[0]} has the target {target}, but {names[1]} has the target {other}. Give all images '
                'of a dataset a class number, or give all of them shares of the classes.'
            )


def viewed(view: View, image: object, target: object) -> tuple[torch.Tensor, Any]:
    """An image and its target after a transform. A mask changes only if the transform is a Jointly."""
    if isinstance(target, torch.Tensor):
        refuse_other_size(tuple(v2.functional.get_size(image)), target)
        if isinstance(view, Jointly):
            return view.with_mask(image, target)
    return view(image), target


def opened(image: object, gray_range: Range = None) -> Any:
    """The image for a transform: a PIL image, or a tv_tensors.Image.

    UserError for a tensor that is no image.
    """
    if not isinstance(image, torch.Tensor):
        return open_image(image, gray_range)
    refuse_unless_pixels(image)
    return image if isinstance(image, tv_tensors.Image) else tv_tensors.Image(image)


def stacked(
    images: Sequence[torch.Tensor], labels: Sequence[Any], weights: Sequence[int], task: str | None
) -> Batch:
    """UserError for images of several sizes or types, and for masks of several sizes."""
    sizes = list(dict.fromkeys(tuple(image.shape[-2:]) for image in images))
    if len(sizes) > 1:
        raise UserError(
            f'the transform makes images of several sizes, such as {sizes[0]} and {sizes[1]} (height, '
            'width), but the images of a batch have one size. Let train.transform and evaluation.transform '
            'end with one size: with dict(type="Resize", size=[height, width]), or with a crop. Resize with '
            'one number keeps the shape of a photo.'
        )
    types = list(dict.fromkeys(image.dtype for image in images))
    if len(types) > 1:  # bytes among floats would become 255 times as bright
        raise UserError(
            f'a batch has images of {types[0]} and of {types[1]} after the transform. Let the dataset give '
            'one kind of image, or let the transforms begin with dict(type="ToTensor").'
        )
    if isinstance(labels[0], torch.Tensor) and len(sides := {tuple(mask.shape) for mask in labels}) > 1:
        raise UserError(
            f'the transform makes masks of several sizes: {sorted(sides)[:2]} (height, width). Let '
            'train.transform and evaluation.transform end with one size.'
        )
    return Batch(
        torch.stack(tuple(images)).contiguous(),
        torch.stack(tuple(labels)) if isinstance(labels[0], torch.Tensor) else torch.tensor(labels),
        torch.tensor(weights, dtype=torch.float32),
        task,
    )


def _collate(items: list[tuple[torch.Tensor, Any, int, str | None]]) -> Batch:
    images, labels, weights, tasks = zip(*items)
    return stacked(images, labels, weights, tasks[0])


def read(
    dataset: Any,
    transforms: Transforms,
    seed: int,
    keys: Keys,
    workers: int,
    collate: Callable[[list], object] = _collate,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """For each batch of `keys`, in order: `collate` of its items. `workers` processes read the items.

    This process reads a single batch: another process would only have to be started.
    """
    left = iter(keys)
    firsts = list(islice(left, 2))
    loader = DataLoader(
        Seeded(dataset, transforms, seed),
        batch_sampler=chain(firsts, left),
        num_workers=workers if len(firsts) > 1 else 0,
        collate_fn=partial(_unless_error, collate),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_run,
    )
    with warnings.catch_warnings():
        # the config has chosen the number of workers
        warnings.filterwarnings('ignore', message='This DataLoader will create')
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def in_order(indices: Sequence[int], size: int) -> Sequence[list[tuple[int, int, int]]]:
    """Batches of `size` images, one after another, as (epoch 0, image index, weight 1)."""
    keys = [(0, index, 1) for index in indices]
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _leave_signals_to_the_run(worker: int) -> None:
    """For a process that reads images: ignores Ctrl-C and signals to the group of the run.

    Only the run itself hears them, because the run still needs the images. The process ends with the run.
    """
    for name in ('SIGINT', 'SIGHUP'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, 'setpgid'):
        os.setpgid(0, 0)


def _unless_error(collate: Callable[[list], object], items: list) -> object:
    """The batch, or the first UserError, which a worker would bury if the worker raised the error."""
    found = next((item for item in items if isinstance(item, UserError)), None)
    try:
        return found or collate(items)
    except UserError as error:
        return error


def load(
    dataset: ImageData, transforms: Transforms, seed: int, keys: Keys, workers: int, device: torch.device
) -> Iterator[Batch]:
    """Reads the batches of `keys`, in order, with `workers` processes, onto `device`.

    Normalises them there.
    """
    parts = {task: split_normalisation(transform) for task, transform in transforms.items()}
    firsts = {task: first for task, (first, _) in parts.items()}
    for batch in read(dataset, firsts, seed, keys, workers, pin_memory=device.type == 'cuda'):
        yield placed(batch, parts[batch.task][1], device)


def placed(batch: Batch, normalise: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Batch:
    """A batch of pixels, normalised on `device`."""
    images, labels, weights = (
        t.to(device, non_blocking=True) for t in (batch.images, batch.labels, batch.weights)
    )
    return Batch(normalise(images), labels, weights, batch.task)
