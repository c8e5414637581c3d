"""Repeated augmentation: a batch holds several augmented copies of an image."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval

from vet.registry import SAMPLERS
from vet.samplers.base import Sampler


@SAMPLERS.register_module()
class RepeatedAugmentation(Sampler):
    """Each drawn image comes `repeats` times, one after another, each time augmented in another way.

    An epoch has as many images as without repeats, so that an epoch sees N / repeats different images.
    Berman et al. 2019 (MultiGrain), arXiv:1902.05509; Touvron et al. 2021 (DeiT).

    repeats: the number of copies.
    """

    def __init__(self, images: int, repeats: Annotated[int, Interval(ge=1, le=100)] = 3):
        super().__init__(images)
        self.repeats = repeats

    def draw(self, epoch: int, generator: torch.Generator) -> Sequence[int]:
        order = torch.randperm(self.images, generator=generator)
        return order.repeat_interleave(self.repeats)[: self.images].tolist()
