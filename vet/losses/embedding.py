"""Losses of vectors. The outputs of a batch are the K cosines with the prototypes, then the vectors.

classes: K. Each loss sees the images of one batch of one process.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Positive
from vet.registry import LOSSES

KIND = 'a class of images that are alike'
Angle = Annotated[float, Interval(ge=0, le=1.5)]


@LOSSES.register_module()
class ArcFaceLoss(nn.Module):
    """The cross-entropy of s cos(theta_k + m [k = y]).

    Deng et al. 2019, arXiv:1801.07698, equation 3

    theta_k: the angle between the vector and the prototype of class k.

    scale: s.
    margin: m, in radians.
    classes: K. vet gives the number of classes.
    Where theta + m is more than pi, the cosine goes on as a line.
    """

    targets = KIND

    def __init__(self, scale: Positive = 64.0, margin: Angle = 0.5, classes: int = 0):
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.classes = classes

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        cosine_BK = outputs[:, : self.classes].clamp(-1 + 1e-6, 1 - 1e-6)
        angle_BK = cosine_BK.acos()
        margin = torch.tensor(self.margin)
        moved_BK = torch.where(
            angle_BK + margin < torch.pi, (angle_BK + margin).cos(), cosine_BK - margin * margin.sin()
        )
        is_own_BK = F.one_hot(targets, self.classes).bool()
        return F.cross_entropy(
            self.scale * torch.where(is_own_BK, moved_BK, cosine_BK), targets, reduction='none'
        )


@LOSSES.register_module()
class SupervisedContrastiveLoss(nn.Module):
    """-1 / |P| sum over p in P of log (exp(e . e_p / t) / sum over a of exp(e . e_a / t)). 0 if P is empty.

    Khosla et al. 2020, arXiv:2004.11362, equation 2

    P: the other images of the batch of the same class. a: all other images of the batch. Large batches help.
    temperature: t.
    classes: K. vet gives the number of classes.
    """

    targets = KIND

    def __init__(self, temperature: Annotated[float, Interval(ge=0.001, le=100)] = 0.1, classes: int = 0):
        super().__init__()
        self.temperature = temperature
        self.classes = classes

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        vectors_BD = outputs[:, self.classes :]
        is_self_BB = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        near_BB = (vectors_BD @ vectors_BD.T / self.temperature).masked_fill(is_self_BB, -1e9)
        is_same_BB = (targets[:, None] == targets) & ~is_self_BB
        logs_BB = near_BB.log_softmax(1)
        return -(logs_BB * is_same_BB).sum(1) / is_same_BB.sum(1).clamp(min=1)


@LOSSES.register_module()
class ProxyAnchorLoss(nn.Module):
    """mean_k log(1 + sum_i exp(-a (s_ik - d))) + mean_k log(1 + sum_j exp(a (s_jk + d))), of each image.

    Kim et al. 2020, arXiv:2003.13911, equation 4

    The first mean is over the classes k of the batch, with their images i. The second mean is over all
    classes k, with the images j of other classes.
    s: the cosine of an image and a prototype.
    scale: a.
    margin: d.
    classes: K. vet gives the number of classes.
    """

    targets = KIND

    def __init__(self, scale: Positive = 32.0, margin: Angle = 0.1, classes: int = 0):
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.classes = classes

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        cosine_BK = outputs[:, : self.classes]
        is_own_BK = F.one_hot(targets, self.classes).bool()
        pulled_BK = (-self.scale * (cosine_BK - self.margin)).masked_fill(~is_own_BK, -torch.inf)
        pushed_BK = (self.scale * (cosine_BK + self.margin)).masked_fill(is_own_BK, -torch.inf)
        present = is_own_BK.any(0).sum()
        loss = _log_one_plus(pulled_BK).sum() / present + _log_one_plus(pushed_BK).mean()
        return loss.expand(len(targets))


def _log_one_plus(powers_BK: torch.Tensor) -> torch.Tensor:
    """(K,): log(1 + sum over the batch of exp(powers))."""
    return F.pad(powers_BK, (0, 0, 1, 0)).logsumexp(0)
