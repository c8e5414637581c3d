"""Optimizers that keep two sets of weights: weights at which gradients are taken, and weights to evaluate.

Schedule-free optimizers are such optimizers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class TwoPoints(Protocol):
    """`train` puts the weights for gradients into the parameters, `eval` the weights to evaluate and save."""

    def train(self) -> None: ...
    def eval(self) -> None: ...


@contextmanager
def in_training(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within this context, the parameters are the weights for gradients. Afterwards, the weights to evaluate.

    Without effect on other optimizers.
    """
    if not isinstance(optimizer, TwoPoints):
        yield
        return
    optimizer.train()
    try:
        yield
    finally:
        optimizer.eval()
