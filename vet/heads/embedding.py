"""The head of vectors of length 1, with a trained prototype of each class."""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Classes, Count
from vet.core.permits import permits, whole
from vet.registry import HEADS


@HEADS.register_module()
@permits(num_classes=whole(1, 1_000_000), size=whole(1, 65_536))
class Embedding(nn.Module):
    """e = W f / |W f|: features (B, C) -> vectors (B, D), in float32.

    While the head trains, the outputs (B, K + D) are the cosines e . p_k / |p_k| with the prototypes p_k of
    the K classes, then e. ArcFace and Proxy Anchor train the prototypes.
    size: D, the numbers of a vector.
    Parameters: C D + K D.
    """

    targets = 'a class of images that are alike'

    def __init__(self, in_features: int, num_classes: Classes, size: Count = 128):
        super().__init__()
        self.fc = nn.Linear(in_features, size, bias=False)
        self.prototypes = nn.Parameter(torch.empty(num_classes, size))
        nn.init.normal_(self.prototypes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            vectors_BD = F.normalize(self.fc(features.float()))
            if not self.training:
                return vectors_BD
            return torch.cat([vectors_BD @ F.normalize(self.prototypes).T, vectors_BD], 1)
