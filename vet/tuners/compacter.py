"""Compacter: adapters whose layers are sums of Kronecker products, with one factor for all layers.

Karimi Mahabadi, Henderson, Ruder 2021, arXiv:2106.04647

C channels, D the width, n the number of products.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Counts, Places
from vet.core.delta import Delta
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS

STD = 1e-4  # of A: phm_init_range in the authors' configs


class Rules(nn.Module):
    """A (n, n, n): the factors that all layers share. Normal of std 1e-4."""

    def __init__(self, number: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(number, number, number).normal_(0, STD))


class KroneckerLinear(nn.Module):
    """h H + b, H = sum over i of A_i (x) (s_i t_i), with s (n, in / n, r) and t (n, r, out / n)

    s_i and t_i start Xavier-uniform with the gain sqrt(2), b at zero.
    """

    def __init__(self, inside: int, out: int, rank: int, rules: Rules):
        super().__init__()
        number = len(rules.A)
        self.s = nn.Parameter(torch.empty(number, inside // number, rank))
        self.t = nn.Parameter(torch.empty(number, rank, out // number))
        self.b = nn.Parameter(torch.zeros(out))
        for factor in (*self.s, *self.t):
            nn.init.xavier_uniform_(factor, gain=math.sqrt(2))
        self.rules: Rules
        object.__setattr__(self, 'rules', rules)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        H = torch.einsum('nac,nkr,nrp->akcp', self.rules.A, self.s, self.t).flatten(2).flatten(0, 1)
        return h @ H + self.b


class CompactBottleneck(Delta):
    """y + W2 gelu(W1 y), along the channel axis."""

    by_token = True

    def __init__(self, channels: int, width: int, axis: int, rank: int, rules: Rules):
        super().__init__()
        self.axis = axis
        self.down = KroneckerLinear(channels, width, rank, rules)
        self.up = KroneckerLinear(width, channels, rank, rules)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        change = self.up(F.gelu(self.down(y.movedim(self.axis, -1)), approximate='tanh'))
        return y + change.movedim(-1, self.axis).to(y.dtype)


@TUNERS.register_module()
class Compacter(Tuner):
    """m(x) + W2 gelu(W1 m(x)) behind attention and FFN, with W = sum over i of A_i (x) (s_i t_i).

    width: the channels between the two layers, a multiple of `products`. One value, a list by depth (0 skips
        a block), or a dict of path patterns.
    products: n, how many Kronecker products make a layer. n divides the channels.
    rank: the rank of s_i t_i.
    at: 'mlp' alone is Compacter++. A network without an FFN has the adapters behind its blocks.
    The start is near the identity, but is not the identity.
    Against the released code: output and gradients of its adapter (largest difference 2e-15 of 6), and the
        start. The code is for T5, and trains the layer norms too: add dict(type='NormTune').
    Parameters per site: 2 rank (C + width) + width + C, and n^3 once; ViT-B/16: 57,088.
    """

    identity_at_start = False
    may_miss = ('attn',)

    def __init__(
        self,
        width: Counts = 24,
        products: Annotated[int, Interval(ge=1, le=64)] = 4,
        rank: Count = 1,
        at: Places = ('attn', 'mlp or block'),
    ):
        super().__init__(at if isinstance(at, str) else list(at))
        self.width = width
        self.products = products
        self.rank = rank

    def shared(self, sites: list[Site]) -> None:
        self.share(Rules(self.products), next(sites[0].module.parameters()).device)

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        channels = site.out_shape[site.axis]
        if channels % self.products or width % self.products:
            raise refuse(self, site, f'channels and a width that {self.products} products divide')
        rules = self.deltas['shared']
        assert isinstance(rules, Rules)
        self.after(site, CompactBottleneck(channels, width, site.axis, self.rank, rules))
