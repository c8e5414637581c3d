"""MLAE: an update of rank-one experts, which are masked at random in training.

Wang et al. 2024, arXiv:2405.18897
"""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Dropout, Places, Positive
from vet.core.deltas import LowRank
from vet.core.ranks import check_rank, require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


class Experts(LowRank):
    """W + sum over i of m_i Lambda_i B_i A_i, with a column B_i (out,) and a row A_i (in,)

    m_i is 0 with probability `mask`, and else 1 / (1 - mask), in training alone. A forward draws m once.
    """

    linear_in = ('B',)

    def __init__(self, weight_shape: torch.Size, rank: int, coefficient: float, mask: float):
        self.coefficient = coefficient
        super().__init__(weight_shape, rank)
        self.mask = mask

    def make(self, in_features: int, num_rows: int) -> None:
        super().make(in_features, num_rows)
        self.Lambda = nn.Parameter(torch.full((self.rank,), self.coefficient))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.A, self.B * F.dropout(self.Lambda, self.mask, self.training)


@TUNERS.register_module()
class MLAE(Tuner):
    """W + sum over i of m_i Lambda_i B_i A_i: `rank` experts of rank one, whose coefficients Lambda train.

    rank: the number of experts: one value, a list by depth (0 skips a block), or a dict of path patterns.
    mask: the share of experts that a training step leaves out, drawn for each site. The other experts are
        multiplied by 1 / (1 - mask).
    coefficient: Lambda at the start.
    at: weights of Linear layers and convolutions.
    Parameters per site: rank (in + out + 1). ViT-B/16, rank 8: 295,008.
    Against the released code: output, gradients, start and mask, in which the code's own defaults are no
        mask and coefficient 1. The code has no recipe.
    """

    def __init__(
        self, rank: Counts = 8, mask: Dropout = 0.5, coefficient: Positive = 1.0, at: Places = 'attn.qkv'
    ):
        if not 0 <= mask < 1:
            raise UserError(f'mask is {mask}; allowed: 0 up to, not including, 1.')
        super().__init__(at)
        self.rank = rank
        self.mask = mask
        self.coefficient = coefficient

    def shared(self, sites: list[Site]) -> None:
        check_rank(self, sites)

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank:
            self.reweight(site, Experts(site.weight.shape, rank, self.coefficient, self.mask))
