"""RepAdapter: linear adapters before attention and FFN that merge into their weights.

Luo et al. 2023, arXiv:2302.08106
"""

import torch
from torch import nn

from vet.allowed import Count, Counts, Dropout, Places, Positive
from vet.core.deltas import InputLowRank
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


class GroupedAdapter(InputLowRank):
    """x + scale (B (A x + a) + b), with A (width, C) dense and B block-diagonal in `groups`.

    B is stored as (C, width / groups).
    """

    def __init__(self, channels: int, width: int, groups: int, scale: float, has_shift: bool, dropout: float):
        super().__init__()
        self.groups = groups
        self.scale = scale
        self.dropout = dropout
        self.A, self.B = (
            nn.Parameter(torch.empty(width, channels)),
            nn.Parameter(torch.zeros(channels, width // groups)),
        )
        self.a = nn.Parameter(torch.zeros(width)) if has_shift else None
        self.b = nn.Parameter(torch.zeros(channels)) if has_shift else None
        nn.init.xavier_uniform_(self.A)

    def dense_B(self) -> torch.Tensor:
        """scale B: (C, width)"""
        return self.scale * torch.block_diag(*self.B.chunk(self.groups))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.A, self.dense_B()

    def shift(self) -> torch.Tensor | None:
        if self.a is None or self.b is None:
            return None
        return self.dense_B() @ self.a + self.scale * self.b

    def hidden(self) -> torch.Tensor | None:
        return self.a

    def outer_shift(self) -> torch.Tensor | None:
        return None if self.b is None else self.scale * self.b


@TUNERS.register_module()
class RepAdapter(Tuner):
    """W (I + scale B A) and bias + W scale (B a + b): x + scale (B (A x + a) + b) before a weight W.

    width: the width of the bottleneck.
    groups: B maps each group of hidden features to a group of channels. B starts at zero.
    scale: the paper tries 0.1 to 10 for each task.
    dropout: of A x + a, before B, in training. The released code fixes 0.1. Only Linear layers take dropout.
    at: weights that see one position at a time. A weight without a bias gets no a and no b, and its keys
        stay.
    Against the released code: output, gradients, start and dropout with dropout=0.1. On ConvNeXt the code's
        first adapter stands before the depthwise convolution, where vet has none.
    Parameters per site: C width (1 + 1 / groups) + width + C. ViT-B/16, width 8: 239,808; the published 0.22M
        leaves the biases out (221,184).
    """

    candidates = (dict(width=8),)
    learning_rates = (5e-4, 2e-2)

    def __init__(
        self,
        width: Counts = 8,
        groups: Count = 2,
        scale: Positive = 1.0,
        dropout: Dropout = 0.0,
        at: Places = ('attn.qkv', 'mlp.fc1'),
    ):
        super().__init__(at)
        if type(groups) is not int or groups < 1:
            raise UserError(f'groups is {groups!r}; allowed: a positive int.')
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        self.width = width
        self.groups = groups
        self.scale = scale
        self.dropout = dropout

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        if not width:
            return
        if not InputLowRank.fits(site):
            raise refuse(self, site, 'a Linear or an ungrouped 1 x 1 convolution')
        channels = site.weight.shape[1]
        if width % self.groups or channels % self.groups:
            raise UserError(
                f'groups is {self.groups}; groups must divide the width {width} and the {channels} channels '
                f'of {site}.'
            )
        has_shift = site.bias is not None
        delta = GroupedAdapter(channels, width, self.groups, self.scale, has_shift, self.dropout)
        self.reweight(site, delta)
