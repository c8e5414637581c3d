"""A head of two linear layers, like the head that fastai puts on a pretrained network.

fastai puts this head behind a pool that concatenates mean and maximum.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Classes, Count, Dropout
from vet.errors import UserError
from vet.registry import HEADS


@HEADS.register_module()
class MLP(nn.Module):
    """logits = W2 drop(BN(ReLU(W1 drop(BN(f)) + b1))) + b2: features (B, C) -> (B, K), in float32.

    Howard 2020, 2002.04688

    hidden: the numbers of the hidden layer.
    dropout: the rate of the second dropout. The first dropout has half the rate.
    The running statistics of each batch norm are saved with its
    parameters. In training, a batch of one image has no statistics. Such a batch is normalised by the running
    statistics, and does not change them.
    Parameters: 2 C + C hidden + hidden + 2 hidden + hidden K + K.
    """

    def __init__(self, in_features: int, num_classes: Classes, hidden: Count = 512, dropout: Dropout = 0.5):
        super().__init__()
        for name, number in (('num_classes', num_classes), ('hidden', hidden)):
            if number < 1:
                raise UserError(f'model.head.{name} is {number}; it must be at least 1.')
        self.layers = nn.Sequential(
            BatchNorm(in_features),
            nn.Dropout(dropout / 2),
            nn.Linear(in_features, hidden),
            nn.ReLU(),
            BatchNorm(hidden),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.layers(features.float())


class BatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d, which also takes a batch of one image in training. torch refuses such a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
