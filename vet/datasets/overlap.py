"""Refuses splits that share images. A result on images that a model was trained on says nothing."""

from collections.abc import Hashable
from typing import Any

from vet.datasets.base import Datasets, ImageData, located, source_identity
from vet.errors import UserError

PAIRS = (
    ('train', 'val', 'the best epoch would be chosen by images that the model is trained on'),
    ('train', 'test', 'the result would be measured on images that the model is trained on'),
    ('val', 'test', 'the best epoch would be chosen by the images of the final result'),
)

ADVICE = {
    (
        'train',
        'val',
    ): '. If dataset.train is split="train+val", leave dataset.val out: then vet holds out a part of train',
    (
        'train',
        'test',
    ): '. To see how well the model fits the training images, train without dataset.test, and run '
    'vet test MODEL --split train',
}


def refuse_overlaps(data: Datasets, chooses: bool) -> None:
    """UserError if two of the splits 'train', 'val' and 'test' share images.

    chooses: whether 'val' chooses the best epoch, or stops training. Only then must 'val' differ from 'test'.
    """
    for first, second, harm in PAIRS:
        if None in (data.get(first), data.get(second)) or (
            (first, second) == ('val', 'test') and not chooses
        ):
            continue
        shared, example = _shared(data[first], data[second])
        if shared:
            raise UserError(
                f'dataset.{first} and dataset.{second} share {shared:,} images, such as {example}: {harm}. '
                f'Give splits without common images{ADVICE.get((first, second), "")}.'
            )


def _shared(first: ImageData, second: ImageData) -> tuple[int, str]:
    """The number of images that two datasets share, and words for an example.

    For several tasks: the images that the first such task shares.
    """
    if hasattr(first, 'tasks') and hasattr(second, 'tasks'):
        pairs = [(first.tasks[task], second.tasks[task]) for task in first.tasks if task in second.tasks]
    else:
        pairs = [(first, second)]
    for left, right in pairs:
        ours, theirs = _identities(left), _identities(right)
        common = [name for name in theirs if name in ours]
        # published sets in memory, such as CIFAR, hold some pictures twice
        in_memory = sum(isinstance(name, bytes) for name in common)
        if common and (in_memory < len(common) or in_memory > len(theirs) / 2):
            return len(common), 'images in memory' if isinstance(common[0], bytes) else _words(common[0])
    return 0, ''


def _words(identity: Any) -> str:
    if isinstance(identity, str):
        return repr(identity)
    kind, *_, number = identity
    return f'number {number} of {str(kind).splitlines()[0]}'


def _identities(dataset: ImageData) -> dict[Hashable, None]:
    """A key for each image of a dataset: a path, the hash of an image in memory, or the dataset and a
    number.
    """
    return {_identity(*located(dataset, index)): None for index in range(len(dataset))}


def _identity(dataset: object, index: int) -> Hashable:
    samples = getattr(dataset, 'samples', None)
    if isinstance(samples, (list, tuple)):
        return getattr(dataset, 'identity', source_identity)(samples[index][0])
    rows = getattr(dataset, 'wrapped', dataset)
    return type(rows).__name__, id(rows), index
