"""Losses of a set of classes: each class is a separate question, yes or no. By torch and timm."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import nn

from vet.allowed import Dropout, Gamma, Positive, Share
from vet.losses.weights import Counts, counted, refuse_other_length
from vet.registry import LOSSES

PositiveWeights = Literal['balanced'] | Positive | Annotated[list[Positive], MinLen(1)] | None


@LOSSES.register_module(name=['BCEWithLogitsLoss', 'BinaryCrossEntropy', 'BCE', 'MultiLabelSoftMarginLoss'])
class BCEWithLogitsLoss(nn.Module):
    """The mean over classes of torch's binary_cross_entropy_with_logits.

    pos_weight: the weight of a class that an image has: a number, or one for each class. 'balanced': (N -
        n_k) / n_k for a class that n_k of N training images have, at most 100.
    label_smoothing: moves each target towards 0.5: y (1 - s) + s / 2.
    """

    targets = 'a set of classes'

    def __init__(
        self, pos_weight: PositiveWeights = None, label_smoothing: Dropout = 0.0, counts: Counts = None
    ):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.pos_weight: torch.Tensor | None
        self.register_buffer('pos_weight', _positive_weights(pos_weight, counts))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        refuse_other_length(self.pos_weight, outputs, 'pos_weight')
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses_BK = F.binary_cross_entropy_with_logits(
            outputs, targets, pos_weight=self.pos_weight, reduction='none'
        )
        return losses_BK.mean(1)


@LOSSES.register_module(name=['AsymmetricLoss', 'AsymmetricLossMultiLabel'])
class AsymmetricLoss(nn.Module):
    """The asymmetric loss, by timm's AsymmetricLossMultiLabel: classes that an image lacks count less. The
    sum over classes.

    Ridnik et al. 2021, arXiv:2009.14119

    gamma_neg: with a larger number, easy classes count less, among the classes that an image lacks.
    gamma_pos: the same, among the classes that an image has.
    clip: a class that the image lacks counts nothing at a score below `clip`.
    """

    targets = 'a set of classes'

    def __init__(
        self,
        gamma_neg: Gamma = 4.0,
        gamma_pos: Gamma = 1.0,
        clip: Share = 0.05,
        label_smoothing: Dropout = 0.0,
    ):
        from timm.loss import AsymmetricLossMultiLabel  # imported here, because the import takes seconds

        super().__init__()
        self.loss = AsymmetricLossMultiLabel(
            gamma_neg, gamma_pos, clip, smoothing=label_smoothing, reduction='none'
        )

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, targets).sum(1)


def _positive_weights(given: str | float | Sequence[float] | None, counts: Counts) -> torch.Tensor | None:
    if given != 'balanced':
        return None if given is None else torch.tensor(given, dtype=torch.float32)
    counts_K, total = counted(counts, 'pos_weight="balanced"')
    return ((total - counts_K) / counts_K.clamp(min=1)).clamp(0.01, 100)
