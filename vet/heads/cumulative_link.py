"""The head of the cumulative link model: ordered classes are pieces of a line, an image is a place there."""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Classes
from vet.core.permits import permits, whole
from vet.registry import HEADS

NARROWEST = 1e-6  # least distance of two thresholds; without images of a class, the distance would become 0


@HEADS.register_module()
@permits(num_classes=whole(1, 1_000_000))
class CumulativeLink(nn.Module):
    """P(y <= k) = sigmoid(t_k - w . f): features (B, C) -> (B, K - 1), in float32.

    McCullagh 1980, doi:10.1111/j.2517-6161.1980.tb01109.x: proportional odds

    w . f: a number for each image, the same for all steps. t_0 < t_1 < … < t_K-2: the thresholds between the
    K classes, with t_0 = s_0 and t_k = t_k-1 + softplus(s_k) + 1e-6. w and s train. w starts normal of std
    0.02. At the start, an image with w . f = 0 has the same probability for each class.
    The outputs are the logits of P(y > k | y >= k), as the objective Ordinal reads outputs. So CornLoss is
    -log P(y) / (K - 1), the likelihood of this model.
    num_classes: K - 1, the number of thresholds.
    Parameters: C + K - 1.
    """

    targets = 'ordered classes'

    def __init__(self, in_features: int, num_classes: Classes):
        super().__init__()
        self.fc = nn.Linear(in_features, 1, bias=False)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        even = (torch.arange(1, num_classes + 1) / (num_classes + 1)).logit()
        self.steps = nn.Parameter(torch.cat([even[:1], even.diff().expm1().log()]))

    def distances(self) -> torch.Tensor:
        """(K - 2,): t_k - t_k-1, each above 0."""
        return F.softplus(self.steps[1:]) + NARROWEST

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            distances = self.distances()
            thresholds = torch.cat([self.steps[:1], distances]).cumsum(0)
            above_BK = thresholds.neg() + self.fc(features.float())  # logits of P(y > k)
            # With S_k = P(y > k): S_k-1 - S_k = S_k-1 (1 - S_k) (1 - exp(t_k-1 - t_k)). So the logit of
            # S_k / S_k-1 is the logit of S_k, minus log S_k-1, minus log(1 - exp(t_k-1 - t_k)).
            later_BK = above_BK[:, 1:] - F.logsigmoid(above_BK[:, :-1]) - distances.neg().expm1().neg().log()
            return torch.cat([above_BK[:, :1], later_BK], 1)
