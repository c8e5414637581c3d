"""Losses of numbers, by torch. They compare standardised numbers: a unit is a standard deviation."""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Positive
from vet.registry import LOSSES


@LOSSES.register_module(name=['MSELoss', 'MSE'])
class MSELoss(nn.Module):
    """The squared error, by torch: estimates the mean. Large errors count much."""

    targets = 'numbers'

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(outputs, targets, reduction='none').mean(1)


@LOSSES.register_module(name=['L1Loss', 'L1'])
class L1Loss(nn.Module):
    """The absolute error, by torch: estimates the median. Outliers count little."""

    targets = 'numbers'

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.l1_loss(outputs, targets, reduction='none').mean(1)


@LOSSES.register_module(name=['HuberLoss', 'Huber'])
class HuberLoss(nn.Module):
    """Squared up to `delta`, and linear above, by torch.

    delta: a number of standard deviations of the training targets.
    """

    targets = 'numbers'

    def __init__(self, delta: Positive = 1.0):
        super().__init__()
        self.delta = delta

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(outputs, targets, reduction='none', delta=self.delta).mean(1)


@LOSSES.register_module()
class SmoothL1Loss(nn.Module):
    """HuberLoss divided by `beta`, by torch.

    beta: a number of standard deviations of the training targets.
    """

    targets = 'numbers'

    def __init__(self, beta: Positive = 1.0):
        super().__init__()
        self.beta = beta

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(outputs, targets, reduction='none', beta=self.beta).mean(1)
