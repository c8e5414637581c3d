"""LoHa: the elementwise product of two low-rank updates.

FedPara, Hyeon-Woo et al. 2022, arXiv:2108.06098; LyCORIS
"""

import math
from typing import Unpack

import torch
from torch import nn

from vet.allowed import Counts, Places, Positives
from vet.core.deltas import LowRankUpdate
from vet.core.peft_names import Ranks
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.registry import TUNERS


class Hadamard(LowRankUpdate):
    """W + scale (w1_a w1_b) * (w2_a w2_b), of rank up to r^2. The factors are the products of all pairs of
    rows.

    weight: (out, in / groups, kH, kW), taken as (out, in kH kW / groups). w2_b starts at zero. The others
        start as in PEFT.
    """

    linear_in = ('w2_b',)

    def __init__(self, weight_shape: torch.Size, rank: int, scale: float):
        super().__init__()
        out = weight_shape[0]
        inside = math.prod(weight_shape[1:])
        self.scale = scale
        self.is_low = 2 * rank**2 <= min(out, inside)
        self.w1_a, self.w1_b = nn.Parameter(torch.empty(out, rank)), nn.Parameter(torch.empty(rank, inside))
        self.w2_a, self.w2_b = nn.Parameter(torch.empty(out, rank)), nn.Parameter(torch.zeros(rank, inside))
        for drawn in (self.w1_a, self.w1_b, self.w2_a):
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        A = self.w1_b[:, None] * self.w2_b[None]  # (r, r, in)
        B = self.w1_a[:, :, None] * self.w2_a[:, None]  # (out, r, r)
        return A.flatten(0, 1), self.scale * B.flatten(1)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        update = self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
        return weight + update.view_as(weight).to(weight.dtype), bias

    def splits(self, module: nn.Module) -> bool:
        """Whether r^2 is small enough, so that two products are faster than the whole update."""
        return self.is_low and super().splits(module)


@TUNERS.register_module()
class LoHa(Tuner):
    """W + (alpha / rank) (B1 A1) * (B2 A2), * by element: of rank up to rank^2, with twice LoRA's parameters.

    rank: the rank of B1 A1 and of B2 A2. One value, a list by depth (0 skips a block), or a dict of path
        patterns.
    alpha: None means alpha = rank.
    at: weights of Linear layers and convolutions.
    Parameters per site: 2 rank (out + in kH kW / groups).
    Against the released code: LyCORIS's products in output and gradients (largest difference 2e-15). There,
        factors start normal (std 1 and 0.1), and the first factor of one product at zero; the start here is
        PEFT's.
    The formula is that of PEFT's LoHa with flattened convolutions (its use_effective_conv2d=False).
    """

    def __init__(
        self, rank: Counts = 4, alpha: Positives | None = None, at: Places = 'attn.qkv', **peft: Unpack[Ranks]
    ):
        super().__init__(at)
        self.rank = rank
        self.alpha = alpha

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank:
            alpha = site.number(self.alpha, 'alpha')
            self.reweight(site, Hadamard(site.weight.shape, rank, 1.0 if alpha is None else alpha / rank))
