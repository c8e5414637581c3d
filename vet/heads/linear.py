"""The usual head: one linear layer on the pooled features."""

import torch
from torch import nn

from vet.allowed import Classes, Dropout
from vet.errors import UserError
from vet.registry import HEADS


@HEADS.register_module(name=['Linear', 'ClassifierHead'])
class LinearHead(nn.Module):
    """logits = W dropout(f) + b: features (B, C) -> (B, K), in float32.

    dropout: the rate of dropout of the features, in training.
    W starts normal of std 0.02, b at zero.
    Parameters: C K + K.
    """

    def __init__(self, in_features: int, num_classes: Classes, dropout: Dropout = 0.0):
        super().__init__()
        if num_classes < 1:
            raise UserError(
                f'model.head.num_classes is {num_classes}; it must be the number of classes, at least 1.'
            )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_features, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(self.dropout(features.float()))
