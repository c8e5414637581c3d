"""The head of a backbone that keeps its classifier. The head adds nothing."""

import torch
from torch import nn

from vet.allowed import Classes
from vet.errors import UserError
from vet.registry import HEADS


@HEADS.register_module()
class Pretrained(nn.Module):
    """logits = f: (B, K) -> (B, K), in float32. f is the output of the backbone's classifier.

    The backbone keeps its classifier with model.backbone.classifier=True. The dataset must number its labels
    as the classifier does: see label_map of ImageFolder. Parameters: none.
    """

    def __init__(self, in_features: int, num_classes: Classes):
        super().__init__()
        if in_features != num_classes:
            raise UserError(
                f'the backbone gives {in_features} numbers per image, but the dataset has {num_classes} '
                'classes, and the head Pretrained adds no layer between them. Keep the classifier with '
                'model.backbone.classifier=True, and give the classes the numbers of the classifier: set '
                'label_map=… and classes=… of the dataset.'
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.float()
