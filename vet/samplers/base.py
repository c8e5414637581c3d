"""The contract of a sampler: which images an epoch trains on, and in which order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vet.errors import UserError

Targets = Callable[[], Sequence[Any]]


class Sampler:
    """The base class of samplers.

    A sampler may take these arguments, which vet offers:
        images: the number of training images, N.
        targets: a function without arguments, which returns the N targets in their plain form.
        names: the names of the classes.
        kind: the objective's kind of target, in words.
    With several tasks, each task has a sampler of its own.
    """

    def __init__(self, images: int):
        self.images = images

    def __len__(self) -> int:
        """The number of images in an epoch, the same for every epoch."""
        return self.images

    def draw(self, epoch: int, generator: torch.Generator) -> Sequence[int]:
        """The images of an epoch, as numbers 0 … N-1, in order. An image may come several times.

        All draws must come from `generator`, which depends only on the seed and the epoch. Then a resumed run
        and any number of processes see the same images. Copies of an image are augmented each in another way.
        """
        raise NotImplementedError(f'{type(self).__name__} must write draw(epoch, generator)')


def classes_of(targets: Targets, kind: str, sampler: str) -> Sequence[int]:
    """The class of each image. UserError if images have no single class."""
    classes = targets()
    if kind == 'one class':  # also shares of classes
        return [label if isinstance(label, int) else label.index(max(label)) for label in classes]
    if not all(isinstance(label, int) for label in classes):
        raise UserError(
            f'the sampler {sampler!r} draws by the class of an image, but a target of this run is '
            f"{kind or 'no class'}. Give dict(type='Weighted', weights=[…]) with one weight for each image."
        )
    return classes
