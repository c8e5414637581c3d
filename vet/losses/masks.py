"""Losses of masks: Dice, and its sum with cross-entropy."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Dropout
from vet.losses.pixels import cross_entropy, dice
from vet.registry import LOSSES


@LOSSES.register_module()
class DiceLoss(nn.Module):
    """1 - the mean over the classes of a mask of the Dice coefficient 2 sum(p y) / (sum(p) + sum(y)).

    p = softmax(outputs). The sums are over the labelled pixels of an image. Milletari et al. 2016,
    arXiv:1606.04797
    """

    targets = 'a mask'

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return dice(outputs, targets)


@LOSSES.register_module()
class CrossEntropyDiceLoss(nn.Module):
    """The mean cross-entropy of the labelled pixels, plus `dice` times DiceLoss.

    dice: the weight of DiceLoss.
    label_smoothing: the share of the target that cross-entropy spreads evenly over all classes.
    """

    targets = 'a mask'

    def __init__(self, dice: Annotated[float, Interval(ge=0, le=100)] = 1.0, label_smoothing: Dropout = 0.0):
        super().__init__()
        self.dice = dice
        self.label_smoothing = label_smoothing

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(outputs, targets, None, self.label_smoothing) + self.dice * dice(
            outputs, targets
        )
