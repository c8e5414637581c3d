"""C3A: an update of blocks, each of which is a circular convolution.   Chen et al. 2024, arXiv:2407.19342"""

import math
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Places
from vet.core.delta import Delta
from vet.core.peft_names import OfC3A
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS


class Circulant(Delta):
    """W + C / n, where C has (out / b) x (n / b) blocks, and a block has w[(column - row) mod b]

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups.
    w: (out / b, n / b, b), one vector for each block; zero at the start.
    """

    linear_in = ('w',)

    def __init__(self, out: int, inside: int, block: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(out // block, inside // block, block))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, columns, block = self.w.shape
        step = torch.arange(block, device=self.w.device)
        blocks = self.w[:, :, (step - step[:, None]) % block]  # (out / b, n / b, row, column)
        update = blocks.transpose(1, 2).reshape(weight.shape) / (columns * block)
        return weight + update.to(weight.dtype), bias


@TUNERS.register_module()
class C3A(Tuner):
    """W + C / in: C has blocks of `block` x `block`, and each block is the circular convolution by a vector.

    The rank of a block may be full, with as many trained numbers as the block has rows.
    block: the size of a block. vet takes the largest common divisor of inputs and outputs up to `block`.
    at: weights of Linear layers and convolutions.
    Parameters per site: out x in kH kW / groups / block.
    Against the released code: the formula of PEFT's C3A on Linear layers, and its start at zero
    (init_weights=True). PEFT's default draws the start, so that the output changes at once.
    """

    def __init__(
        self, block: Annotated[Count, Interval(ge=2)] = 256, at: Places = 'attn.qkv', **peft: Unpack[OfC3A]
    ):
        super().__init__(at)
        self.block = block

    def tune(self, site: Site) -> None:
        require_matrix(self, site)
        out = len(site.weight)
        inside = site.weight[0].numel()
        common = math.gcd(out, inside)
        block = next(size for size in range(min(self.block, common), 0, -1) if common % size == 0)
        if block < 2:
            raise refuse(self, site, 'a common divisor of inputs and outputs above 1')
        self.reweight(site, Circulant(out, inside, block))
