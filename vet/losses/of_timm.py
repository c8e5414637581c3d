"""Losses of timm.loss, by timm's names. timm computes each of them.

vet leaves out JsdCrossEntropy, which needs three views of each image; TwoWayLoss, which gives no loss of an
image; and DistributionBalancedLoss.
"""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Dropout, Gamma, Share
from vet.registry import LOSSES

Epsilon = Annotated[float, Interval(ge=-1, le=100)]


@LOSSES.register_module()
class PolyCrossEntropy(nn.Module):
    """-log p + epsilon (1 - p). p is the score of the target.

    Leng et al. 2022, arXiv:2204.12511

    epsilon: 0 is cross-entropy. With a larger epsilon, images that are not sure count more.
    label_smoothing: the share of the target that is spread evenly over all classes.
    """

    targets = 'one class'

    def __init__(self, epsilon: Epsilon = 2.0, label_smoothing: Dropout = 0.0):
        from timm.loss import PolyCrossEntropy as Timms  # imported here, because the import takes seconds

        super().__init__()
        self.loss = Timms(epsilon, label_smoothing, reduction='none')

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, targets)


@LOSSES.register_module()
class PolyBinaryCrossEntropy(nn.Module):
    """(1 - p)^gamma (-log p + epsilon (1 - p)), the mean over classes. p: the score of what is true.

    Leng et al. 2022, arXiv:2204.12511

    epsilon, gamma: with 0 for both, the loss is BCEWithLogitsLoss.
    alpha: the weight of the classes that an image has; the other classes get 1 - alpha. None: no weights.
    label_smoothing: moves each target towards 0.5: y (1 - s) + s / 2.
    """

    targets = 'a set of classes'

    def __init__(
        self,
        epsilon: Epsilon = 1.0,
        gamma: Gamma = 0.0,
        alpha: Share | None = None,
        label_smoothing: Dropout = 0.0,
    ):
        from timm.loss import PolyBinaryCrossEntropy as Timms

        super().__init__()
        self.loss = Timms(
            epsilon=epsilon, gamma=gamma, alpha=alpha, smoothing=label_smoothing, reduction='none'
        )

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, targets).mean(1)


@LOSSES.register_module()
class AsymmetricLossSingleLabel(nn.Module):
    """The asymmetric loss for images of one class: classes that an image lacks count less.

    Ridnik et al. 2021, arXiv:2009.14119

    gamma_neg, gamma_pos: see AsymmetricLoss.
    label_smoothing: the share of the target that is spread evenly over all classes. timm's default is 0.1.
    """

    targets = 'one class'

    def __init__(self, gamma_neg: Gamma = 4.0, gamma_pos: Gamma = 1.0, label_smoothing: Dropout = 0.0):
        from timm.loss import AsymmetricLossSingleLabel as Timms

        super().__init__()
        self.loss = Timms(gamma_pos, gamma_neg, eps=label_smoothing, reduction='none')

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(outputs, targets)


@LOSSES.register_module()
class ZlprLoss(nn.Module):
    """log(1 + sum exp(s_j)) of the classes j that an image lacks, plus log(1 + sum exp(-s_i)) of its classes.

    Su et al. 2022, arXiv:2208.02955
    """

    targets = 'a set of classes'

    def __init__(self) -> None:
        from timm.loss import ZlprLoss as Timms

        super().__init__()
        self.loss = Timms()

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.vmap(self.loss)(outputs, targets)  # of each image
