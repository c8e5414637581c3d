"""The contract of a dataset: class names, samples and targets. An image is decoded when it is asked for."""

import hashlib
import os
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from vet.datasets.class_names import class_list
from vet.datasets.image import Range, open_image
from vet.errors import DataError, UnknownNameError, UserError
from vet.targets import Plain, as_label

Sample = tuple[Any, Any]
"""An image source that `open_image` reads (mostly a path), and its target: mostly a label 0 … K-1."""


class ImageData(Protocol):
    """The contract of a user's dataset.

    An item is an image, of any kind that `open_image` reads (PIL, array, path …), and its target: a label 0 …
    K-1, a set of classes, or numbers. `targets`, the list of all targets, is optional. Without `targets`, vet
    reads every item, with its image, to know the targets.
    `classes`: the class names, or the names of the numbers.
    `objective` is optional: the config entry of the objective, such as dict(type='MultiLabel'), for configs
    that name none. Without `objective`, each image has one class.
    """

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[object, object]: ...


Datasets = dict[str, Any]  # the datasets of a run, by split; None: the run does not have the split


class Targets(Protocol):
    """The part of an objective that datasets need (vet/core/objective.py)."""

    def check(self, target: object, name: Callable[[], str]) -> Plain: ...

    def group(self, target: object) -> int: ...


class ImageDataset(Dataset):
    """Samples with labels. Item i is (PIL RGB image, label).

    classes: K names, in the order of the labels, as `class_list` takes them.
    samples: (source, target) pairs. Without `objective`, a target is a label 0 … K-1.
    The attribute `targets` is the list of the targets.
    objective: the config entry of the objective, if an image has not one class.
    gray_range: see open_image. A Trainer sets gray_range, see `set_gray_range`.
    An image is decoded only when its item is asked for. DataError if there is no sample, or if a label is
    outside 0 … K-1. An item raises DataError, with the file's name, if its image is broken.
    """

    gray_range: Range = None

    def __init__(
        self, classes: Iterable[str], samples: Iterable[Sample], objective: Mapping[str, object] | None = None
    ):
        self.classes = class_list(list(classes) if isinstance(classes, str) else classes)
        if objective is not None:
            self.objective = dict(objective)
        self.samples = list(samples) if objective else [(source, _whole(label)) for source, label in samples]
        self.targets = [label for _, label in self.samples]
        name = type(self).__name__
        if not self.samples:
            raise DataError(f'{name} has no image in this split; check the folder or the list of its images.')
        given: Any = self
        labels = [label for label in self.targets if not np.ndim(label)] if objective is None else []
        if labels and (min(labels) < 0 or max(labels) >= len(self.classes)):
            wrong = next(i for i, label in enumerate(self.targets) if not 0 <= label < len(self.classes))
            raise DataError(
                f'{name} has labels {min(labels)} … {max(labels)}, '
                f'but {len(self.classes)} class names; labels count from 0. The first wrong label is '
                f'{self.targets[wrong]}, of {item_name(given, wrong)}. Correct it, or leave the image out.'
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, object]:
        source, label = self.samples[index]
        return self.open(source), label

    def open(self, source: object) -> Image.Image:
        """The RGB image of a sample's source."""
        return open_image(source, self.gray_range)

    def identity(self, source: object) -> Hashable:
        """A key that differs for any two images. Two splits that have a key in common share an image."""
        return source_identity(source)


def by_task(dataset: object) -> dict[str | None, Any]:
    """{task: its dataset} of a dataset of several tasks. Of any other dataset: {None: the dataset}."""
    return getattr(dataset, 'tasks', {None: dataset})


def of_task(dataset: object, task: str | None) -> Any:
    """The dataset of a task. None: the dataset itself."""
    return dataset if task is None else by_task(dataset)[task]


def set_gray_range(dataset: object, ranges: Mapping[str | None, Range]) -> None:
    """Sets how a dataset, or each task of a dataset, reads gray images.

    Training and evaluation then read gray images in the same way, as the backbone's preprocessing says.
    """
    for task, task_data in by_task(dataset).items():
        for inner in _with_wrapped(task_data):
            if ranges[task] is not None or getattr(inner, 'gray_range', None) is not None:
                inner.gray_range = ranges[task]


def _with_wrapped(dataset: object) -> Iterator[Any]:
    """A dataset, and all datasets that it wraps."""
    yield dataset
    wrapped = [dataset.dataset] if isinstance(dataset, Subset) else []
    for inner in dataset.datasets if isinstance(dataset, ConcatDataset) else wrapped:
        yield from _with_wrapped(inner)


def located(dataset: Any, index: int) -> tuple[Any, int]:
    """The innermost wrapped dataset that holds item `index`, and the item's place there."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        else:
            number = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[number - 1] if number else 0
            dataset = dataset.datasets[number]
    return dataset, index


def gray_range_of(dataset: object, task: str | None = None) -> Range:
    """The gray range that `set_gray_range` gave to a dataset, or to one of its tasks."""
    return getattr(of_task(dataset, task), 'gray_range', None)


def sources_of(dataset: object, place: int = 0) -> list[object]:
    """The source of each item, in the order of the items. Empty if the dataset does not say its sources.

    place: 1 gives the source of each item's target, such as the file of a mask.
    """
    if isinstance(dataset, Subset):
        whole = sources_of(dataset.dataset, place)
        return [whole[index] for index in dataset.indices] if whole else []
    if isinstance(dataset, ConcatDataset):
        parts = [sources_of(inner, place) for inner in dataset.datasets]
        return [source for sources in parts for source in sources] if all(parts) else []
    samples = getattr(dataset, 'samples', ())
    return [sample[place] for sample in samples] if isinstance(samples, list | tuple) else []


def pixels_digest(pixels: np.ndarray) -> bytes:
    """The sha256 of an image in memory: of its type, its shape and its values."""
    return hashlib.sha256(f'{pixels.dtype} {pixels.shape} '.encode() + pixels.tobytes()).digest()


def source_identity(source: object) -> Hashable:
    """A key of an image source: the real path of a file, or a hash of an array's pixels.

    For any other source the key is its place in memory.
    """
    if isinstance(source, str | os.PathLike):
        folder, name = os.path.split(os.fspath(source))
        path = os.path.join(_real(folder), name)
        return os.path.realpath(path) if os.path.islink(path) else path
    if isinstance(source, np.ndarray):
        return pixels_digest(source)
    return type(source).__name__, id(source)


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _whole(label: Any) -> Any:
    """A label as an int. A float is not rounded: `targets_of` refuses it."""
    return label if isinstance(label, float | np.floating) or np.ndim(label) else int(label)


def set_objective(dataset: object, objectives: Mapping[str | None, Targets]) -> None:
    """Sets how the targets of a dataset, or of each task of a dataset, are checked."""
    for task, task_data in by_task(dataset).items():
        task_data.checked_by = objectives[task]


def follow_models(dataset: object, models: Mapping[str | None, Any]) -> None:
    """Lets a dataset, or each task of a dataset, read images and check targets as the task's model needs.

    models: {task: ImageClassifier}
    """
    set_objective(dataset, {task: model.objective for task, model in models.items()})
    set_gray_range(dataset, {task: model.backbone.preprocessing.gray_range for task, model in models.items()})


def objective_of(dataset: object, task: str | None = None) -> Any:
    """The objective that `set_objective` gave to a dataset, or to one of its tasks. None: it gave none."""
    return getattr(of_task(dataset, task), 'checked_by', None)


def checked(dataset: Any, target: object, name: Callable[[], str], task: str | None = None) -> Plain:
    """The plain form of a target. UserError for a wrong target. Without an objective: a label 0 … K-1."""
    objective = objective_of(dataset, task)
    if objective is not None:
        return objective.check(target, name)
    return as_label(target, len(dataset.classes if task is None else dataset.classes[task]), name)


def targets_of(dataset: ImageData) -> list[Plain]:
    """All targets of a dataset, in their plain form. If the dataset has no `targets`, every item is read."""
    targets = known_targets(dataset)
    return [item_of(dataset, index)[1] for index in range(len(dataset))] if targets is None else targets


def known_targets(dataset: ImageData) -> list[Plain] | None:
    """All targets of a dataset, in their plain form. None: the dataset has no `targets`. No item is read."""
    targets = given_targets(dataset)
    if targets is None:
        return None
    return [
        checked(dataset, target, partial(item_name, dataset, index)) for index, target in enumerate(targets)
    ]


def class_counts(dataset: ImageData) -> list[int]:
    """The images of each class. Empty if there are no classes, or if items would be read."""
    targets = known_targets(dataset)
    objective = objective_of(dataset)
    if targets is None or objective is None:
        return []
    try:
        return objective.counts(targets)
    except UserError:  # the objective has no classes
        return []


def missing_classes(data: ImageData) -> list[str]:
    """A sentence for each task that has a class without images."""
    sentences = []
    for task, dataset in by_task(data).items():
        counts = class_counts(dataset)
        missing = [label for label, count in enumerate(counts) if not count]
        if missing:
            name = objective_of(dataset).names[missing[0]]
            of_task = f' of the task {task!r}' if task else ''
            sentences.append(
                f'no training image{of_task} has the class {name!r} ({len(missing)} of {len(counts)} '
                'classes have no training image). The model cannot learn such a class.'
            )
    return sentences


def given_targets(dataset: ImageData) -> Any:
    """The `targets` of a dataset, one for each item, as the dataset has them. None: the dataset has none."""
    targets = getattr(dataset, 'targets', None)
    if targets is not None and len(targets) != len(dataset):
        raise UserError(
            f'the dataset {type(dataset).__name__} has {len(targets)} `targets`, but {len(dataset)} images. '
            'Give one label for each image, in the order of the images; or leave `targets` out.'
        )
    return targets


def item_of(dataset: ImageData, index: int, task: str | None = None) -> tuple[object, Plain]:
    """Item `index` of any dataset: its image, as the dataset gives it, and its target in the plain form.

    task: the item's task, for a dataset of several tasks.
    Any error of the dataset becomes a UserError that names the item.
    """
    with errors_named(lambda: item_name(dataset, index)):
        item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        kind = f'a {type(item).__name__}' + (
            f' of {len(item)} parts' if isinstance(item, (tuple, list)) else ''
        )
        raise UserError(
            f'{item_name(dataset, index)} is {kind}; an item is a pair (image, label). Let `__getitem__` '
            'return such a pair.'
        )
    image, given = item
    target = checked(dataset, given, lambda: item_name(dataset, index), task)
    _refuse_contradiction(dataset, index, target, task)
    return image, target


def _refuse_contradiction(dataset: ImageData, index: int, target: object, task: str | None) -> None:
    """UserError if the dataset's `targets` give another target than the item itself.

    Classes are counted and images are held out by `targets`. Training learns the item's target.
    """
    targets = getattr(dataset, 'targets', None)
    if targets is None or index >= len(targets) or isinstance(target, torch.Tensor):  # masks count nowhere
        return
    told_target = checked(dataset, targets[index], lambda: item_name(dataset, index), task)
    is_near = isinstance(target, tuple) and np.allclose(told_target, target, rtol=1e-5)  # float32 or float64
    if told_target != target and not is_near:
        raise UserError(
            f'{item_name(dataset, index)} has the label {target}, but the `targets` of the dataset say '
            f'{told_target}. Let `targets` give the labels of the items, in their order; or leave '
            '`targets` out.'
        )


def item_name(dataset: ImageData, index: int) -> str:
    """Words for an item of any dataset. The file's name is part of them, if it is known."""
    dataset = getattr(dataset, 'inner', dataset)  # a cache reads through `inner`
    inner, place = located(dataset, index)
    samples = getattr(inner, 'samples', None)
    source = samples[place][0] if isinstance(samples, (list, tuple)) and place < len(samples) else None
    file = f' ({os.fspath(source)!r})' if isinstance(source, str | os.PathLike) else ''
    return f'image {index} of {type(dataset).__name__}{file}'


@contextmanager
def errors_named(name: Callable[[], str], advice: str = 'Look at the dataset.') -> Iterator[None]:
    """Any error from an image, or from its transform, becomes a UserError that names the image."""
    try:
        yield
    except UserError as error:
        # another class tells the program something, and says nothing about the image
        if type(error) not in (UserError, DataError):
            raise
        raise type(error)(f'{name()}: {error}') from error
    except Exception as error:  # a user's dataset, and the libraries that it calls, can raise any error
        raise DataError(
            f'{name()} cannot be read or transformed: {type(error).__name__}: {error}. {advice}'
        ) from error


def resolve_split(split: str, splits: Sequence[str], name: str) -> list[str]:
    """The official splits that `split` asks for: 'eval' (ModelScope's word) is 'test', 'train+val' is both.

    splits: the splits of the dataset `name`. UnknownNameError, a UserError, lists them if `split` is none of
        them.
    """
    allowed = [*splits, 'train+val'] if {'train', 'val'} <= set(splits) else list(splits)
    asked = 'test' if split == 'eval' else split
    if asked not in allowed:
        raise UnknownNameError(f'split of {name}', split, allowed, "'eval' means 'test'.")
    return asked.split('+')


def require_files(samples: Sequence[Sample], name: str) -> list[Sample]:
    """The samples, with the file names as this disk spells them. DataError if a file is missing.

    So a missing file is found before training, not in the middle of an epoch. A list and a disk may spell 'é'
    as one character or as two: macOS unpacks archives with two.
    """
    found = [(on_disk(source), label) for source, label in samples]
    missing = [
        source for source, _ in found if isinstance(source, str | os.PathLike) and not os.path.isfile(source)
    ]
    if missing:
        raise DataError(
            f'{name} lists {len(samples)} images of which {len(missing)} are missing, the first one: '
            f'{os.fspath(missing[0])!r}. Complete the folder, or unpack the archive again.'
        )
    return found


def on_disk(source: object) -> Any:
    """A path in the Unicode form that the disk uses. Any other source stays unchanged."""
    if not isinstance(source, str | os.PathLike) or os.fspath(source).isascii() or os.path.isfile(source):
        return source
    forms = (unicodedata.normalize(form, os.fspath(source)) for form in ('NFC', 'NFD'))
    return next(filter(os.path.isfile, forms), source)
