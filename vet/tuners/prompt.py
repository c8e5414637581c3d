"""VPT: learned tokens that flow through the frozen blocks beside the image's tokens.

Jia et al. 2022, arXiv:2203.12119
"""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Dropout, OneOf, Places
from vet.core.attention import (
    BIAS_SETTINGS,
    UNROTATED,
    attends,
    bias_arguments,
    position_biases,
    rotary_arguments,
    tie_to_positions,
)
from vet.core.delta import Delta
from vet.core.deltas import DropLast, Unbiased
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

DEPTHS = ('deep', 'shallow')
# B images, N tokens, P prompts, C channels


@TUNERS.register_module()
class VPT(Tuner):
    """Learned prompts P beside the tokens x of the blocks.

    depth: 'deep', [x_i, _] = block_i([x_{i-1}, P_{i-1}]): new prompts P at every block (eq. 7). 'shallow',
        [x_i, Z_i] = block_i([x_{i-1}, Z_{i-1}]), Z_0 = P: prompts at the first block, which flow on (eq.
        4-5).
    length: tokens at each block; one value. For 'deep' also a list by depth (0 skips a block) or a dict of
        path patterns.
    dropout: of the prompts, in training.
    The prompts stand last. In the paper they stand behind the class token. Prompts have no positions, so
    their place changes no result. They start uniform in ±sqrt(6 / (3 p² + C)), p the patch's side, and have
    no weight decay.
    Against the released code: output, gradients, start and dropout. The code decays prompts too, with AdamW
        by 0.01; train.groups gives them a weight decay here.
    Parameters: length C per block ('deep'), or length C ('shallow'); ViT-B/16: 9,216 and 768 per token.
    The blocks must have tokens with plain attention. Maps and windows are refused. In a hybrid network, the
    convolutional blocks before the first tokens get no prompts. If attention adds a bias
    of relative positions to its scores (BEiT), the bias is zero in the rows and columns of prompts, as in the
    authors' Swin (github.com/KMnP/vpt). If a block rotates queries and keys by positions, prompts are not
    rotated, as class tokens are not (timm's prefix tokens). A block that returns only the class
    token, as the last two blocks of CaiT, sees only 'deep' prompts.
    """

    identity_at_start = False
    needs = 'blocks that take any number of tokens, and make no map of them'
    length_key = ('prompt_length', 'length')
    candidates = (dict(length=10),)
    learning_rates = (1e-3, 1e-1)

    def __init__(
        self,
        length: Counts = 10,
        depth: Annotated[str, OneOf(DEPTHS)] = 'deep',
        dropout: Dropout = 0.0,
        at: Places = 'block',
    ):
        super().__init__(at)
        if depth not in DEPTHS:
            raise UnknownNameError('depth of VPT', depth, DEPTHS)
        if depth == 'shallow' and not isinstance(length, int):
            raise UserError(
                f'length is {length!r}; a shallow prompt has one length, an int. Or set depth="deep".'
            )
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        self.length = length
        self.depth = depth
        self.dropout = dropout

    def shared(self, sites: list[Site]) -> None:
        assert self.backbone is not None
        stem = self.backbone.sites.find('stem')[0].weight  # (C, 3, p, p)
        self.bound = math.sqrt(6 / (stem[0].numel() + len(stem)))
        starts = (site.takes_tokens or attends(site, self.backbone.sites) for site in sites)
        first = next((i for i, is_start in enumerate(starts) if is_start), 0)
        self.maps = {site.name for site in sites[:first]}
        for site in sites[first:]:
            known = [*rotary_arguments(site.module), *bias_arguments(site.module), *BIAS_SETTINGS]
            tie = tie_to_positions(site.module, known, [module for module, _ in position_biases(site.module)])
            whole = site.takes_tokens and site.windows_per_image == 1
            gives = site.keeps_shape or site.out_shape == (1, site.in_shape[-1])
            if not (whole and gives) or tie or not attends(site, self.backbone.sites):
                raise refuse(
                    self,
                    site,
                    'tokens (N, C) under attention that takes any number of them'
                    + (f', free of {tie!r}' if tie else ' (for convolutional networks see BorderPrompt)'),
                )
        depths = [site.depth for site in sites[first:] if site.keeps_shape]
        self.first = min(depths, default=-1)
        self.last = max(depths, default=-1)

    def tune(self, site: Site) -> None:
        length = site.at_depth(self.length, 'length')
        if not length or site.name in self.maps:
            return
        if self.depth == 'deep' or site.depth == self.first:
            self.before(site, Prompts(length, site.in_shape[-1], self.bound, self.dropout))
        for argument in rotary_arguments(site.module):
            self.before(site, Unrotated(length, UNROTATED[argument]), argument)
        for argument in bias_arguments(site.module):
            self.before(site, Unbiased(length), argument)
        for module, method in position_biases(site.module):
            self.result(site, module, method, Unbiased(length))
        if site.keeps_shape and (self.depth == 'deep' or site.depth == self.last):
            self.after(site, DropLast(length))


class Unrotated(Delta):
    """Rotary angles (…, N, D) -> (…, N + P, D): the last P tokens are not rotated.

    values: of such a token, in equal parts of D.
    """

    def __init__(self, length: int, values: tuple[float, ...]):
        super().__init__()
        self.length = length
        self.values = values

    def forward(self, rope: torch.Tensor) -> torch.Tensor:
        *batch, _, D = rope.shape
        size = D // len(self.values)
        parts = [rope.new_full((*batch, self.length, size), value) for value in self.values]
        return torch.cat([rope, torch.cat(parts, -1)], -2)


class Prompts(Delta):
    """(B, N, C) -> (B, N + P, C): learned tokens behind the others."""

    by_token = True

    def __init__(self, length: int, channels: int, bound: float, dropout: float):
        super().__init__()
        self.dropout = dropout
        prompts: Any = nn.Parameter(torch.empty(length, channels).uniform_(-bound, bound))
        prompts.no_weight_decay = True
        self.prompts = prompts

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        p_BPC = F.dropout(self.prompts.expand(len(x_BNC), -1, -1), self.dropout, self.training)
        return torch.cat([x_BNC, p_BPC.to(x_BNC.dtype)], 1)
