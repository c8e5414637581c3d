"""Samplers that draw with replacement, each image with a probability of its own."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval, MinLen

from vet.errors import UnknownNameError, UserError
from vet.registry import SAMPLERS
from vet.samplers.base import Sampler, Targets, classes_of

Weight = Annotated[float, Interval(ge=0, le=1e6)]


class Drawn(Sampler):
    """N draws with replacement, with probabilities in proportion to `weights` (N,)."""

    weights: torch.Tensor

    def draw(self, epoch: int, generator: torch.Generator) -> Sequence[int]:
        return torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()


@SAMPLERS.register_module()
class ClassBalanced(Drawn):
    """Draws an image of a class of n_k images with probability ~ n_k^(-power), with replacement.

    power: 1: every class comes equally often. 0.5: the square-root sampling of Mahajan et al. 2018,
        arXiv:1805.00932. 0: every image is as likely.
    UserError unless each image has one class.
    """

    def __init__(
        self,
        images: int,
        targets: Targets,
        kind: str = '',
        power: Annotated[float, Interval(ge=0, le=1)] = 1.0,
    ):
        super().__init__(images)
        classes = classes_of(targets, kind, 'ClassBalanced')
        counts = Counter(classes)
        self.weights = torch.tensor([counts[label] ** -power for label in classes], dtype=torch.float64)


@SAMPLERS.register_module()
class Weighted(Drawn):
    """Draws images with probabilities in proportion to weights, with replacement.

    weights: {class name: weight}, where other classes weigh 1; or a list with a weight for each class, in the
        order of `classes`; or a list with a weight for each training image.
    UserError for another number of weights, and if no image has a weight above 0.
    """

    def __init__(
        self,
        weights: Annotated[list[Weight], MinLen(1)] | Annotated[dict[str, Weight], MinLen(1)],
        images: int,
        targets: Targets,
        names: Sequence[str],
        kind: str = '',
    ):
        super().__init__(images)
        if isinstance(weights, dict):
            if unknown := [name for name in weights if name not in names]:
                raise UnknownNameError('class in train.sampler.weights', unknown[0], names)
            weights = [weights.get(name, 1.0) for name in names]
        elif len(weights) not in (images, len(names)):
            raise UserError(
                f'train.sampler.weights has {len(weights):,} weights. Give one for each of the {images:,} '
                f'training images, or one for each of the {len(names):,} classes, or {{class name: weight}}.'
            )
        if len(weights) != images:
            weights = [weights[label] for label in classes_of(targets, kind, 'Weighted')]
        self.weights = torch.tensor(weights, dtype=torch.float64)
        if not self.weights.any():
            raise UserError(
                'train.sampler.weights gives every training image the weight 0, so that no image can be '
                'drawn. Give a weight above 0 to some of them.'
            )
