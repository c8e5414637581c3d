"""OFT: blocks of a weight's input channels are rotated.   Qiu et al. 2023, arXiv:2306.07280

The blocks of R are trained as skew-symmetric matrices Q, by Cayley's transform.
"""

import math
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Places
from vet.core.delta import Delta
from vet.core.peft_names import OfOFT
from vet.core.ranks import require_matrix
from vet.core.reweight import reweights_of
from vet.core.rotations import rotations_of
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS


class Rotation(Delta):
    """W R', with R = diag(R_1, …, R_m) and R_i = (I - Q_i) (I + Q_i)^-1

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups = m b.
    q: (m, b (b - 1) / 2), the entries of each Q_i above the diagonal; zero at the start.
    terms: R_i = I + 2 Q + … + 2 Q^(terms - 2) + Q^(terms - 1) instead, the series of (I + Q) (I - Q)^-1,
        which needs no solver. None: the formula above.
    """

    reads_weight = False
    turns_input = True

    def __init__(self, inside: int, block: int, terms: int | None):
        super().__init__()
        self.block = block
        self.terms = terms
        self.q = nn.Parameter(torch.zeros(inside // block, math.comb(block, 2)))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        blocks = weight.flatten(1).to(self.q.dtype).unflatten(1, (-1, self.block))  # (out, m, b)
        turned = torch.einsum('omk,mck->omc', blocks, self.rotations())
        return turned.reshape(weight.shape).to(weight.dtype), bias

    def splits(self, module: nn.Module) -> bool:
        """Whether x may be rotated in place of W. No other delta may reweight the module."""
        return type(module) is nn.Linear and len(reweights_of(module)) == 1

    def turned(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x R by blocks: (…, in)"""
        R_mbb = self.rotations().to(x.dtype)
        x_mNb = x.reshape(-1, len(R_mbb), self.block).transpose(0, 1)
        return (x_mNb @ R_mbb).transpose(0, 1).reshape(x.shape)

    def rotations(self) -> torch.Tensor:
        """R (m, b, b)."""
        above = torch.triu_indices(self.block, self.block, 1, device=self.q.device)
        Q = self.q.new_zeros(len(self.q), self.block, self.block)
        Q[:, above[0], above[1]] = self.q
        Q = Q - Q.mT
        if self.terms is None:
            return rotations_of(Q)
        one = torch.eye(self.block, dtype=Q.dtype, device=Q.device)
        power = Q
        R = one + 2 * Q
        for _ in range(self.terms - 3):
            power = power @ Q
            R = R + 2 * power
        return R + power @ Q


@TUNERS.register_module()
class OFT(Tuner):
    """W R': R rotates each block of `block` input channels, so that angles between the rows of a block stay.

    block: the size of a block. If `block` does not divide the inputs, vet takes the largest smaller divisor.
    terms: None, or how many powers of Q stand for the inverse in Cayley's transform. PEFT takes 5.
    at: weights of Linear layers and convolutions.
    Parameters per site: in kH kW / groups x (block - 1) / 2.
    Against the released code: the formula of PEFT's OFT on Linear layers, without block_share, coft and
    dropout.
    """

    def __init__(
        self,
        block: Annotated[Count, Interval(ge=2)] = 32,
        terms: Annotated[int, Interval(ge=4, le=100)] | None = None,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfOFT],
    ):
        super().__init__(at)
        self.block = block
        self.terms = terms

    def tune(self, site: Site) -> None:
        require_matrix(self, site)
        inside = site.weight[0].numel()
        block = next(size for size in range(self.block, 0, -1) if inside % size == 0)
        if block < 2:
            raise refuse(self, site, f'a number of inputs with a divisor of 2 to {self.block}')
        self.reweight(site, Rotation(inside, block, self.terms))
