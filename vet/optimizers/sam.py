"""Sharpness-aware minimization (SAM): a step takes the gradient at the worst weights nearby."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def at_worst(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Within this context, the parameters are w + rho g / ||g||. g are their gradients, which this context
    removes.

    Afterwards, the parameters are w again, bit for bit. Gradients that were made in the context stay.
    rho: the distance, above 0. ||g||: the norm over all parameters together.
    Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412, equation 2 with p = 2.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    kept = [parameter.detach().clone() for parameter in moved]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    with torch.no_grad():
        scale = rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        for parameter, gradient in zip(moved, gradients):
            parameter.add_(gradient * scale)
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, kept):
                parameter.copy_(value)
