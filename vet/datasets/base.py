"""What a dataset is: class names, samples and labels, with images decoded when they are asked for."""

import hashlib
import operator
import os
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from vet.datasets.class_names import class_list
from vet.datasets.image import Range, open_image
from vet.errors import DataError, UnknownNameError, UserError

Sample = tuple[Any, int]
"""An image source that `open_image` reads (mostly a path), and its label 0 … K-1."""


class ImageData(Protocol):
    """All that a dataset of the user's own needs.

    An item is an image, of any kind that `open_image` reads (PIL, array, path …), and its label 0 … K-1.
    `targets`, the
    list of all labels, is optional: without it every item is read once where the labels are needed, images
    included.
    """

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class ImageDataset(Dataset):
    """Samples with labels; item i is (PIL RGB image, label).

    classes: K names, in the order of the labels, as `class_list` takes them. samples: (source, label) pairs.
    targets: the labels, as a list. gray_range: as open_image takes it; a Trainer sets it, see
    `set_gray_range`. Images are decoded when they are asked for, never before. Raises DataError where there
    is no sample or a label is outside 0 … K-1, and from an item where its image is broken, naming the file.
    """

    gray_range: Range = None

    def __init__(self, classes: Iterable[str], samples: Iterable[Sample]):
        self.classes = class_list(list(classes) if isinstance(classes, str) else classes)
        self.samples = [(source, int(label)) for source, label in samples]
        self.targets = [label for _, label in self.samples]
        name = type(self).__name__
        if not self.samples:
            raise DataError(
                f'{name} has no image in this split; check the folder or the list it is read from.'
            )
        if min(self.targets) < 0 or max(self.targets) >= len(self.classes):
            raise DataError(
                f'{name} has labels {min(self.targets)} … {max(self.targets)}, '
                f'but {len(self.classes)} class names; labels count from 0.'
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        source, label = self.samples[index]
        return self.open(source), label

    def open(self, source: Any) -> Image.Image:
        """The RGB image of a sample's source."""
        return open_image(source, self.gray_range)

    def identity(self, source: Any) -> Hashable:
        """What tells a sample's source from all others; two splits that share one share an image."""
        return source_identity(source)


def set_gray_range(dataset: Any, ranges: Mapping[str | None, Range]) -> None:
    """Has a dataset, of each task, read gray images as the backbone's preprocessing says, in training
    and evaluation alike.
    """
    for task, part in getattr(dataset, 'tasks', {None: dataset}).items():
        while part is not None:
            if ranges[task] is not None or getattr(part, 'gray_range', None) is not None:
                part.gray_range = ranges[task]
            part = part.dataset if isinstance(part, Subset) else None


def gray_range_of(dataset: Any, task: str | None = None) -> Range:
    """What `set_gray_range` gave to a dataset, or to one of its tasks."""
    return getattr(dataset if task is None else dataset.tasks[task], 'gray_range', None)


def sources_of(dataset: Any) -> list[Any]:
    """What each item is read from, in the order of the items; none where the dataset does not say."""
    if isinstance(dataset, Subset):
        whole = sources_of(dataset.dataset)
        return [whole[index] for index in dataset.indices] if whole else []
    samples = getattr(dataset, 'samples', ())
    return [sample[0] for sample in samples] if isinstance(samples, list | tuple) else []


def pixels_digest(pixels: np.ndarray) -> bytes:
    """The sha256 of an image in memory: of its type, its shape and its values."""
    return hashlib.sha256(f'{pixels.dtype} {pixels.shape} '.encode() + pixels.tobytes()).digest()


def source_identity(source: Any) -> Hashable:
    """The path of a file, without the links on its way; a hash of the pixels of an array; of anything
    else, its place in memory.
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


def targets_of(dataset: ImageData) -> list[int]:
    """All labels of a dataset, from its `targets` where it has them, otherwise by reading every item."""
    targets = getattr(dataset, 'targets', None)
    if targets is None:
        return [item_of(dataset, index)[1] for index in range(len(dataset))]
    if len(targets) != len(dataset):
        raise UserError(
            f'the dataset {type(dataset).__name__} has {len(targets)} `targets`, but {len(dataset)} images. '
            'Give one label for each image, in the order of the images; or leave `targets` out.'
        )
    return [
        as_label(label, len(dataset.classes), partial(item_name, dataset, index))
        for index, label in enumerate(targets)
    ]


def item_of(dataset: Any, index: int, num_classes: int | None = None) -> tuple[Any, int]:
    """Item `index` of any dataset: its image, as the dataset gives it, and its label, an int 0 … K-1.

    num_classes: K; None: the number of the dataset's classes. A UserError names the item, whatever the
        dataset raises.
    """
    with told(lambda: item_name(dataset, index)):
        item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        kind = f'a {type(item).__name__}' + (
            f' of {len(item)} parts' if isinstance(item, (tuple, list)) else ''
        )
        raise UserError(
            f'{item_name(dataset, index)} is {kind}; an item is a pair (image, label). Make `__getitem__` '
            'return one.'
        )
    image, label = item
    return image, as_label(
        label, len(dataset.classes) if num_classes is None else num_classes, lambda: item_name(dataset, index)
    )


def as_label(label: Any, num_classes: int, name: Callable[[], str]) -> int:
    """A label as an int. UserError where it is no whole number from 0 to K-1; `name` says of which item."""
    try:
        number = operator.index(label)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < num_classes:
        kind = type(label).__name__ + (
            f' of shape {tuple(label.shape)}' if getattr(label, 'shape', ()) else ''
        )
        raise UserError(
            f'{name()} has the label {str(label)[:60]} ({kind}), but there are {num_classes} classes: a '
            f'label is a whole number from 0 to {num_classes - 1}, the place of the name in `classes`.'
        )
    return number


def item_name(dataset: Any, index: int) -> str:
    """An item of any dataset in words, with its file where that is known."""
    dataset = getattr(dataset, 'inner', dataset)  # what a cache reads through
    inner: Any = dataset
    place = index
    while isinstance(inner, Subset):
        inner, place = inner.dataset, inner.indices[place]
    samples = getattr(inner, 'samples', None)
    source = samples[place][0] if isinstance(samples, (list, tuple)) and place < len(samples) else None
    file = f' ({os.fspath(source)!r})' if isinstance(source, str | os.PathLike) else ''
    return f'image {index} of {type(dataset).__name__}{file}'


@contextmanager
def told(name: Callable[[], str], advice: str = 'Look at the dataset.') -> Iterator[None]:
    """Whatever an image, or a transform of it, raises becomes a UserError that names the image."""
    try:
        yield
    except UserError as error:
        if type(error) not in (
            UserError,
            DataError,
        ):  # another class says something to the program, not of the image
            raise
        raise type(error)(f'{name()}: {error}') from error
    except Exception as error:  # a user's own dataset, and the libraries that it calls, raise anything
        raise DataError(
            f'{name()} cannot be read or transformed: {type(error).__name__}: {error}. {advice}'
        ) from error


def resolve_split(split: str, splits: Sequence[str], name: str) -> list[str]:
    """The official splits that `split` asks for: 'eval' (ModelScope's word) is 'test', 'train+val' is both.

    splits: those that the dataset called `name` has. Raises UnknownNameError, a UserError, with those it has.
    """
    allowed = [*splits, 'train+val'] if {'train', 'val'} <= set(splits) else list(splits)
    asked = 'test' if split == 'eval' else split
    if asked not in allowed:
        raise UnknownNameError(f'split of {name}', split, allowed, "'eval' means 'test'.")
    return asked.split('+')


def require_files(samples: Sequence[Sample], name: str) -> list[Sample]:
    """The samples with the names that their files have on this disk. DataError if a file is not there: sooner
    than in the middle of an epoch.

    A list and a disk may spell 'é' as one character or as two: macOS unpacks archives with two.
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


def on_disk(source: Any) -> Any:
    """A path as the disk spells it, where it spells it with other Unicode forms; anything else as it is."""
    if not isinstance(source, str | os.PathLike) or os.fspath(source).isascii() or os.path.isfile(source):
        return source
    forms = (unicodedata.normalize(form, os.fspath(source)) for form in ('NFC', 'NFD'))
    return next(filter(os.path.isfile, forms), source)
