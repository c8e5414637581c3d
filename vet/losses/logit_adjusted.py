"""Cross-entropy that knows how frequent each class is: for classes of unequal size."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Dropout
from vet.losses.weights import Counts, counted
from vet.registry import LOSSES


@LOSSES.register_module()
class LogitAdjustedLoss(nn.Module):
    """cross_entropy(outputs + tau log pi). pi_k is the share of class k among the training images.

    Menon et al. 2021, arXiv:2007.07314

    In use, the scores come from the outputs without the term, so that rare classes gain.
    tau: 0 is plain cross-entropy. 1 fits the mean of the classes' accuracies.
    """

    targets = 'one class'
    prior: torch.Tensor

    def __init__(
        self,
        tau: Annotated[float, Interval(ge=0, le=10)] = 1.0,
        label_smoothing: Dropout = 0.0,
        counts: Counts = None,
    ):
        super().__init__()
        self.label_smoothing = label_smoothing
        counts_K, total = counted(counts, 'LogitAdjustedLoss')
        self.register_buffer('prior', tau * (counts_K.clamp(min=1) / total).log())

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            outputs + self.prior, targets, reduction='none', label_smoothing=self.label_smoothing
        )
