"""HiRA: the elementwise product of a weight and a low-rank matrix.

Huang et al., ICLR 2025, https://openreview.net/forum?id=TwJrTz9cRS
"""

import math
from typing import Unpack

import torch
from torch import nn

from vet.allowed import Counts, Places
from vet.core.delta import Delta
from vet.core.peft_names import Ranks
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.registry import TUNERS


class HadamardWithWeight(Delta):
    """W + W * (B A), * by element.

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. A: (r, n), B: (out, r).
    A starts uniform as in nn.Linear, B at zero.
    """

    def __init__(self, weight_shape: torch.Size, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, math.prod(weight_shape[1:])))
        self.B = nn.Parameter(torch.zeros(weight_shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return weight + weight * (self.B @ self.A).view_as(weight).to(weight.dtype), bias


@TUNERS.register_module()
class HiRA(Tuner):
    """W + W * (B A), * by element: an update of high rank, because W has a high rank.

    rank: the rank of B A. One value, a list by depth (0 skips a block), or a dict of path patterns.
    at: weights of Linear layers and convolutions.
    Parameters per site: rank (out + in kH kW / groups), as LoRA's.
    Against the released code: the formula and the start of PEFT's HiRA on Linear layers. PEFT's dropout of
    the update's input is not here.
    """

    def __init__(self, rank: Counts = 32, at: Places = 'attn.qkv', **peft: Unpack[Ranks]):
        super().__init__(at)
        self.rank = rank

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank:
            self.reweight(site, HadamardWithWeight(site.weight.shape, rank))
