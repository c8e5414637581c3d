"""Weights of classes, as a config gives them."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval, MinLen

from vet.errors import UserError

Weight = Annotated[float, Interval(ge=0, le=1e6)]
ClassWeights = Literal['balanced'] | Annotated[list[Weight], MinLen(1)] | None
Counts = Callable[[], tuple[Sequence[int], int]] | None


def counted(counts: Counts, needs: str) -> tuple[torch.Tensor, int]:
    """The number of training images of each class, float32 (K,), and of all. UserError if nobody counts
    them.
    """
    if counts is None:
        raise UserError(
            f'{needs} counts the training images of each class, but there are no training images.'
        )
    of_classes, total = counts()
    return torch.tensor(of_classes, dtype=torch.float32), total


def balanced(counts_K: torch.Tensor, total: int) -> torch.Tensor:
    """N / (K n_k), as scikit-learn's class_weight='balanced'. A class without images counts as one image."""
    return total / (len(counts_K) * counts_K.clamp(min=1))


def refuse_other_length(weights: torch.Tensor | None, outputs: torch.Tensor, key: str) -> None:
    """UserError if there is not one weight for each output."""
    if weights is not None and weights.ndim and len(weights) != outputs.shape[1]:
        raise UserError(
            f'train.loss.{key} has {len(weights)} weights, but there are {outputs.shape[1]} classes. Give '
            'one weight for each class, in the order of `classes`, or "balanced".'
        )
