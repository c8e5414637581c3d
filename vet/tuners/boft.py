"""BOFT: the inputs of a weight are rotated by several sparse rotations, as in a butterfly.

Liu et al. 2023, arXiv:2311.06243
"""

from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Places
from vet.core.delta import Delta
from vet.core.peft_names import OfBOFT
from vet.core.ranks import require_matrix
from vet.core.rotations import rotations_of
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS


class Butterfly(Delta):
    """s * (W (M_m … M_1)'), with M_i = P_i diag(R_1, …, R_n/b) P_i', and R = (I - Q) (I + Q)^-1

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups.
    R: (m, n / b, b, b), zero at the start; Q = (R - R') / 2. s: (out, 1), one at the start.
    P_i permutes the inputs, so that the rotation i mixes blocks of b 2^(i-1) inputs.
    """

    order: torch.Tensor
    back: torch.Tensor

    def __init__(self, out: int, inside: int, block: int, factors: int):
        super().__init__()
        self.R = nn.Parameter(torch.zeros(factors, inside // block, block, block))
        self.s = nn.Parameter(torch.ones(out, 1))
        order = torch.stack([butterfly(inside, block, level) for level in range(factors)])
        self.register_buffer('order', order, persistent=False)
        self.register_buffer('back', order.argsort(1), persistent=False)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        W = weight.flatten(1).to(self.R.dtype)
        rotations = rotations_of((self.R - self.R.mT) / 2)
        for order, back, R in zip(self.order, self.back, rotations):
            blocks = W[:, back].unflatten(1, R.shape[:2])  # (out, n / b, b)
            W = torch.einsum('omk,mck->omc', blocks, R).flatten(1)[:, order]
        return (self.s * W).view_as(weight).to(weight.dtype), bias


def butterfly(inside: int, block: int, level: int) -> torch.Tensor:
    """(inside,), P_i as numbers: of each piece of block 2^level inputs the even half blocks, then the odd."""
    numbers = torch.arange(inside)
    return numbers.view(-1, 2**level, 2, block // 2).transpose(1, 2).flatten() if level else numbers


@TUNERS.register_module()
class BOFT(Tuner):
    """s * (W R'), where R is a product of `factors` rotations of blocks, so that R mixes far inputs too.

    One factor is OFT with trained scales s of the outputs.
    block: the size of a block. If `block` 2^(factors - 1) does not divide the inputs, vet takes the largest
        smaller block that fits. With several factors, blocks are even.
    factors: the number of rotations of blocks.
    at: weights of Linear layers and convolutions.
    Parameters per site: factors x in kH kW / groups x block + out. Half of the numbers of a block act,
        because only their skew-symmetric part counts.
    Against the released code: the formula and the start of PEFT's BOFT on Linear layers, without its
        dropout. Without its CUDA code, PEFT takes one factor, whatever it was given.
    """

    def __init__(
        self,
        block: Annotated[Count, Interval(ge=2)] = 4,
        factors: Annotated[int, Interval(ge=1, le=16)] = 1,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfBOFT],
    ):
        super().__init__(at)
        self.block = block
        self.factors = factors

    def tune(self, site: Site) -> None:
        require_matrix(self, site)
        inside = site.weight[0].numel()
        pieces = 2 ** (self.factors - 1)
        sizes = range(self.block, 1, -1) if self.factors == 1 else range(self.block // 2 * 2, 1, -2)
        block = next((size for size in sizes if inside % (size * pieces) == 0), None)
        if block is None:
            raise refuse(
                self, site, f'inputs that {self.factors} factors of blocks up to {self.block} divide'
            )
        self.reweight(site, Butterfly(len(site.weight), inside, block, self.factors))
