"""What a dataset is: class names, samples and labels, with images decoded when they are asked for."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from PIL import Image
from torch.utils.data import Dataset

from vet.datasets.image import open_image
from vet.errors import DataError, UnknownNameError

Sample = tuple[Any, int]
"""An image source that `open_image` reads (mostly a path), and its label 0 … K-1."""


class ImageData(Protocol):
    """All that a dataset of the user's own needs.

    An item is an image, of any kind that `open_image` reads (PIL, array, path …), and its label 0 … K-1. `targets`, the
    list of all labels, is optional: without it every item is read once where the labels are needed, images included.
    """

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class ImageDataset(Dataset):
    """Samples with labels; item i is (PIL RGB image, label).

    classes: K names, in the order of the labels. samples: (source, label) pairs. targets: the labels, as a list.
    Images are decoded when they are asked for, never before. Raises DataError where there is no sample or a label is
    outside 0 … K-1, and from an item where its image is broken, naming the file.
    """

    def __init__(self, classes: Iterable[str], samples: Iterable[Sample]):
        self.classes = [str(name) for name in classes]
        self.samples = [(source, int(label)) for source, label in samples]
        self.targets = [label for _, label in self.samples]
        name = type(self).__name__
        if not self.samples:
            raise DataError(f'{name} has no image in this split; check the folder or the list it is read from.')
        if min(self.targets) < 0 or max(self.targets) >= len(self.classes):
            raise DataError(f'{name} has labels {min(self.targets)} … {max(self.targets)}, '
                            f'but {len(self.classes)} class names; labels count from 0.')

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        source, label = self.samples[index]
        return self.open(source), label

    def open(self, source: Any) -> Image.Image:
        """The RGB image of a sample's source."""
        return open_image(source)


def targets_of(dataset: ImageData) -> list[int]:
    """All labels of a dataset, from its `targets` where it has them, otherwise by reading every item."""
    targets = getattr(dataset, 'targets', None)
    if targets is None:
        targets = [dataset[index][1] for index in range(len(dataset))]
    return [int(label) for label in targets]


def resolve_split(split: str, splits: Sequence[str], name: str) -> list[str]:
    """The official splits that `split` asks for: 'eval' (ModelScope's word) is 'test', 'train+val' is both.

    splits: those that the dataset called `name` has. Raises UnknownNameError, a UserError, with those it has.
    """
    allowed = [*splits, 'train+val'] if {'train', 'val'} <= set(splits) else list(splits)
    asked = 'test' if split == 'eval' else split
    if asked not in allowed:
        raise UnknownNameError(f'split of {name}', split, allowed, "'eval' means 'test'.")
    return asked.split('+')


def require_files(samples: Sequence[Sample], name: str) -> None:
    """Raises DataError if a sample's file is not there: sooner than in the middle of an epoch."""
    missing = [source for source, _ in samples if isinstance(source, str | os.PathLike) and not os.path.isfile(source)]
    if missing:
        raise DataError(f'{name} lists {len(samples)} images of which {len(missing)} are missing, the first one: '
                        f'{os.fspath(missing[0])!r}. Complete the folder, or unpack the archive again.')
