"""The loss of ordered classes: each output is a question about one step between two ranks."""

import torch
import torch.nn.functional as F
from torch import nn

from vet.registry import LOSSES


@LOSSES.register_module()
class CornLoss(nn.Module):
    """The sum over k <= y of the binary cross-entropy of sigmoid(f_k) = P(y > k | y >= k), divided by K - 1.

    Shi, Cao, Raschka 2021, arXiv:2111.08851, equation 9

    y: the rank of an image, 0 … K-1. f: the K - 1 outputs. An image trains only the steps that the image
    reaches. The paper divides the sum over a batch by the number of its terms. vet divides by images and
    steps.
    """

    targets = 'ordered classes'

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        steps_K = torch.arange(outputs.shape[1], device=outputs.device)
        rank_B1 = targets[:, None]
        losses_BK = F.binary_cross_entropy_with_logits(
            outputs, (rank_B1 > steps_K).to(outputs.dtype), reduction='none'
        )
        return (losses_BK * (rank_B1 >= steps_K)).mean(1)
