"""Prefix tuning: learned keys and values in every attention.   Li and Liang 2021, arXiv:2101.00190"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Places
from vet.core.attention import tie_to_positions
from vet.core.delta import Delta
from vet.core.deltas import DropLast
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS
from vet.torch_private import hooks_before

# B images, N tokens, P prefix tokens, C channels


@TUNERS.register_module()
class Prefix(Tuner):
    """softmax(q [K; P_k]^T / sqrt(d)) [V; P_v] in each head (as He et al. 2022 write it, arXiv:2110.04366,
    sec. 2.2).

    P empty tokens join the attention's input. After the projection, the prefix's keys and values replace
    theirs. The tokens leave after the attention. The paper's reparametrisation by an MLP is left out, as in
    ModelScope and VPT's tables.
    length: P; one value, a list by depth (0 skips a block), or a dict of path patterns.
    The learned keys and values start uniform in ±(6 / (C (P + 1)))^1/2, and have no weight decay.
    Against the released code: ModelScope's Prefix in output, gradients and start. ModelScope decays the
    weights of prefixes too.
    Parameters: 2 P C per attention; ViT-B/16: 18,432 per token.
    The site must have plain attention over all tokens with a fused qkv. Windows, relative and rotary
    positions and normed keys are refused.
    """

    identity_at_start = False
    length_key = ('prefix_length', 'length')

    def __init__(self, length: Counts = 10, at: Places = 'attn'):
        super().__init__(at)
        self.length = length

    def tune(self, site: Site) -> None:
        assert self.backbone is not None
        length = site.at_depth(self.length, 'length')
        if not length:
            return
        fused, tie = getattr(site.module, 'qkv', None), tie_to_positions(site.module)
        normed = not isinstance(getattr(site.module, 'k_norm', None), nn.Identity | None)
        if (
            not site.takes_tokens
            or site.windows_per_image != 1
            or tie
            or normed
            or not isinstance(fused, nn.Linear)
            or fused.out_features != 3 * fused.in_features
        ):
            needs = 'plain attention over all tokens, with a fused qkv layer'
            if tie:
                needs += f' and free of {tie!r}'
            elif normed:
                needs += ' and unnormed keys'
            raise refuse(self, site, needs)
        for hook in hooks_before(site.module):
            if isinstance(hook, partial) and isinstance(hook.args[0], EmptyTokens):
                needs = 'an attention without another prefix (the other prefix may be longer)'
                raise refuse(self, site, needs)
        fused_too = [
            f'{name}.qkv'
            for name in site.found
            if isinstance(getattr(self.backbone.network.get_submodule(name), 'qkv', None), nn.Linear)
        ]
        projections = self.backbone.sites.find(fused_too)
        [projection] = (other for other in projections if other.name == f'{site.name}.qkv')
        parts = self.rows_of_parts(projection)
        if set(parts) != set('qkv'):
            raise refuse(self, site, 'an attention whose qkv rows each make a query, a key or a value')
        self.before(site, EmptyTokens(length))
        order = torch.cat([torch.arange(fused.out_features)[parts[part]] for part in 'qkv']).argsort()
        self.after(projection, KeysAndValues(length, fused.out_features // 3, order))
        self.after(site, DropLast(length))


class EmptyTokens(Delta):
    """(B, N, C) -> (B, N + P, C): zeros behind the others."""

    by_token = True

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return F.pad(x_BNC, (0, 0, 0, self.length))


class KeysAndValues(Delta):
    """qkv of N + P tokens: the last P keys and values become the learned keys and values.

    The last P queries are zero.
    """

    by_token = True
    order: torch.Tensor  # the place in [q; k; v] of each row of the projection

    def __init__(self, length: int, channels: int, order: torch.Tensor):
        super().__init__()
        self.register_buffer('order', order, persistent=False)
        key: Any = nn.Parameter(torch.empty(length, channels))
        value: Any = nn.Parameter(torch.empty(length, channels))
        for prefix in (key, value):
            nn.init.xavier_uniform_(prefix[None])  # as ModelScope draws (1, P, C)
            prefix.no_weight_decay = True
        self.key, self.value = key, value

    def forward(self, x: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        """x (B, N + P, C), qkv (B, N + P, 3 C) -> qkv"""
        prefix = torch.cat([torch.zeros_like(self.key), self.key, self.value], -1)[:, self.order].to(
            qkv.dtype
        )
        return torch.cat([qkv[:, : -len(prefix)], prefix.expand(len(qkv), -1, -1)], 1)
