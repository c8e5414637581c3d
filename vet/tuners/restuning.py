"""Res-Tuning-Bypass: a path of thin residual adapters beside the blocks. The last block gives the result of
the path.

The frozen blocks need no backward pass.

B images, N tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Count, Places
from vet.core.delta import Delta
from vet.core.deltas import Sides, this_forward
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


class ResAdapter(nn.Module):
    """x + U gelu(D x). x (…, C), D (width, C) and U (C, width) with biases.

    D and U start as Xavier's uniform, the biases with a deviation of 1e-6.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(F.gelu(self.down(x)))


class Begin(Delta):
    """x -> x. The bypass begins with x (B, N, C)."""

    def __init__(self, tokens: int, sides: Sides):
        super().__init__()
        self.tokens = tokens
        self.sides = sides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sides[this_forward(), -1] = x[:, : self.tokens]
        return x


class Step(Delta):
    """b_i = R(y) + V(b_{i-1}). Gives y, or b_i in its place if the block is the last.

    tokens: the tokens of an image. Tokens that other tuners add stand behind these, and pass.
    """

    def __init__(self, channels: int, width: int, tokens: int, number: int, is_last: bool, sides: Sides):
        super().__init__()
        self.tokens = tokens
        self.number = number
        self.is_last = is_last
        self.sides = sides
        self.lateral, self.vertical = ResAdapter(channels, width), ResAdapter(channels, width)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        before = self.sides[this_forward(), self.number - 1]
        b = self.lateral(y[:, : self.tokens]) + self.vertical(before)
        if not self.is_last:
            self.sides[this_forward(), self.number] = b
            return y
        self.sides.end()
        return torch.cat([b.to(y.dtype), y[:, self.tokens :]], 1)


@TUNERS.register_module()
class ResTuningBypass(Tuner):
    """b_i = R_i(x_i) + V_i(b_{i-1}), b_0 = x_0. The last b_i replaces the output of the last block.

    Res-Tuning-Bypass, Jiang et al. 2023, arXiv:2310.19859.
    x_0: the tokens that enter the first block. x_i: the tokens that leave block i.
    R_i, V_i: x + U gelu(D x), with D (width, C) and U (C, width), the paper's horizontal and vertical tuners.
    No trained number stands in a block. So the blocks need no backward pass, unless other tuners train there.
    width: the width of each adapter.
    at: the blocks. All take and give tokens of one shape (N, C).
    Parameters: 2 (2 C width + width + C) per block; ViT-B/16: 1,198,848.
    Against the released code: ms-swift's ResTuningBypassModule in output and gradients (largest difference
        0), and its start. For networks of several stages, that code also has upsampling, which is not
        here.
    """

    identity_at_start = False

    def __init__(self, width: Count = 32, at: Places = 'block'):
        super().__init__(at)
        if width < 1:
            raise UserError(f'width is {width}; it must be at least 1.')
        self.width = width

    def shared(self, sites: list[Site]) -> None:
        self.sides = Sides()
        self.numbers = {site.name: number for number, site in enumerate(sites)}
        self.shape = sites[0].in_shape

    def tune(self, site: Site) -> None:
        if not (site.takes_tokens and site.keeps_shape) or site.in_shape != self.shape:
            raise refuse(self, site, 'a block of tokens (N, C), the same in and out in every block')
        number = self.numbers[site.name]
        is_last = number == len(self.numbers) - 1
        N, C = site.in_shape
        if number == 0:
            self.before(site, Begin(N, self.sides))
        self.after(site, Step(C, self.width, N, number, is_last, self.sides))
