"""FourierFT: an update whose spectrum has a few trained entries.   Gao et al. 2024, arXiv:2405.03003"""

import math
from typing import Unpack

import torch
from torch import nn

from vet.allowed import Counts, Places, Positive, Seed
from vet.core.delta import Delta
from vet.core.peft_names import OfFourierFT
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.registry import TUNERS


class Spectrum(Delta):
    """W + scale Re(F^-1(S)), with S zero but for `count` entries

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups.
    values: (count,), the entries of S; zero at the start. places: (count,), their places in S, row by row.
    """

    places: torch.Tensor
    linear_in = ('values',)

    def __init__(self, weight_shape: torch.Size, count: int, scale: float, seed: int):
        super().__init__()
        self.scale = scale
        self.seed = seed
        self.shape = (weight_shape[0], math.prod(weight_shape[1:]))
        order = torch.randperm(math.prod(self.shape), generator=torch.Generator().manual_seed(seed))
        self.register_buffer('places', order[:count].to(torch.int32))
        self.values = nn.Parameter(torch.zeros(count))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # torch makes no transform for half precision
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        S = values.new_zeros(math.prod(self.shape)).index_put((self.places.long(),), values)
        update = self.scale * torch.fft.ifft2(S.view(self.shape)).real
        return weight + update.view_as(weight).to(weight.dtype), bias


@TUNERS.register_module()
class FourierFT(Tuner):
    """W + scale Re(F^-1(S)): S has `count` trained entries at random places, and F is the Fourier transform.

    count: how many entries train: one value, a list by depth (0 skips a block), or a dict of path patterns.
        Sites of one shape have the same places. A small weight has at most as many entries as numbers.
    scale: the paper takes 300 for ViT.
    seed: the seed that draws the places.
    at: weights of Linear layers and convolutions.
    Parameters per site: count. Paper: ViT-B, query and value, 3,000 for each: 72,000.
    Against the released code: the formula, the start at zero and the places of PEFT's FourierFT on Linear
    layers. The default of the released code starts from normal entries.
    """

    def __init__(
        self,
        count: Counts = 3000,
        scale: Positive = 300.0,
        seed: Seed = 777,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfFourierFT],
    ):
        super().__init__(at)
        self.count = count
        self.scale = scale
        self.seed = seed

    def tune(self, site: Site) -> None:
        count = site.at_depth(self.count, 'count')
        require_matrix(self, site)
        if count:
            count = min(count, site.weight.numel())
            self.reweight(site, Spectrum(site.weight.shape, count, self.scale, self.seed))
