"""The focal loss: images that are easy count less."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from vet.allowed import Gamma, Share
from vet.errors import UserError
from vet.registry import LOSSES


@LOSSES.register_module()
class FocalLoss(nn.Module):
    """-(1 - p)^gamma log p of the target. For a set of classes: torchvision's sigmoid_focal_loss, summed.

    Lin et al. 2017, arXiv:1708.02002

    gamma: 0 is cross-entropy. With a larger gamma, easy images count less.
    alpha: only for a set of classes: the weight of the classes that an image has; the other classes get
        1 - alpha. None: no weights.
    kind: the objective's kind of target.
    """

    targets = ('one class', 'a set of classes')

    def __init__(self, gamma: Gamma = 2.0, alpha: Share | None = None, kind: str = 'one class'):
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.kind = kind
        if alpha is not None and kind == 'one class':
            raise UserError(
                f'train.loss.alpha is {alpha:g}, which weighs the classes that an image has against the '
                'others; an image of this dataset has one class. Leave alpha out.'
            )

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.kind != 'one class':
            alpha = -1.0 if self.alpha is None else self.alpha
            return sigmoid_focal_loss(outputs, targets, alpha, self.gamma).sum(1)
        shares_BK = targets if targets.ndim == 2 else F.one_hot(targets, outputs.shape[1])
        logs_BK = outputs.log_softmax(1)
        return -(shares_BK * (1 - logs_BK.exp()) ** self.gamma * logs_BK).sum(1)
