"""Batches of a few classes with several images each, for losses that compare images."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval

from vet.registry import SAMPLERS
from vet.samplers.base import Sampler, Targets, classes_of


@SAMPLERS.register_module()
class PerClass(Sampler):
    """Draws `images_per_class` images of a class, one after another, then of the next class.

    The classes come in a random order, each once, and then again in another order. A class with fewer images
    gives some images several times. The M-per-class sampling of metric learning: Hermans et al. 2017,
    arXiv:1703.07737, section 2 (P classes with K images in a batch).

    images_per_class: K. A batch of B images has B / K classes, if K divides B.
    UserError unless each image has one class.
    """

    def __init__(
        self,
        images: int,
        targets: Targets,
        kind: str = '',
        images_per_class: Annotated[int, Interval(ge=1, le=1000)] = 4,
    ):
        super().__init__(images)
        self.images_per_class = images_per_class
        self.members: dict[int, list[int]] = defaultdict(list)
        for image, label in enumerate(classes_of(targets, kind, 'PerClass')):
            self.members[label].append(image)

    def draw(self, epoch: int, generator: torch.Generator) -> Sequence[int]:
        order: list[int] = []
        classes = list(self.members)
        while len(order) < self.images:
            for place in torch.randperm(len(classes), generator=generator).tolist():
                order += self._of_class(self.members[classes[place]], generator)
        return order[: self.images]

    def _of_class(self, members: Sequence[int], generator: torch.Generator) -> list[int]:
        """K images of a class: all different, if the class has so many."""
        drawn: list[int] = []
        while len(drawn) < self.images_per_class:
            drawn += [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        return drawn[: self.images_per_class]
