"""Prefix tuning: learned keys and values in every attention.   Li and Liang 2021, arXiv:2101.00190"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Places
from vet.core.attention import (
    BIAS_SETTINGS,
    OVER_CHANNELS,
    Rows,
    bias_arguments,
    position_biases,
    tie_to_positions,
)
from vet.core.delta import Delta
from vet.core.deltas import DropLast, Unbiased
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS
from vet.torch_private import hooks_before

NORMS = ('k_norm', 'norm_k', 'k_layernorm')  # of keys, by the names of attentions
# B images, N tokens, P prefix tokens, C channels


@TUNERS.register_module()
class Prefix(Tuner):
    """softmax(q [K; P_k]^T / sqrt(d)) [V; P_v] in each head (as He et al. 2022 write it, arXiv:2110.04366,
    sec. 2.2).

    P empty tokens join the attention's input. After the projections, the prefix's keys and values replace
    theirs. The tokens leave after the attention. The paper's reparametrisation by an MLP is left out, as in
    ModelScope and VPT's tables.
    length: P; one value, a list by depth (0 skips a block), or a dict of path patterns.
    The learned keys and values start uniform in ±(6 / (C (P + 1)))^1/2, and have no weight decay.
    Against the released code: ModelScope's Prefix in output, gradients and start. ModelScope decays the
    weights of prefixes too.
    Parameters: 2 P C per attention; ViT-B/16: 18,432 per token.
    The site must have plain attention over all tokens, with one fused layer or several layers for q, k and v.
    If attention adds a bias of relative positions to its scores, the bias is zero in the columns of the
    prefix. Windows, rotary positions and normed keys are refused. So is an attention that reads the weight of
    its fused layer and does not call the layer, as timm's BEiT: the layer's output has no place for an edit.
    """

    identity_at_start = False
    length_key = ('prefix_length', 'length')

    def __init__(self, length: Counts = 10, at: Places = 'attn'):
        super().__init__(at)
        self.length = length

    def shared(self, sites: list[Site]) -> None:
        """All layers are found before the first edit, because finding runs the network."""
        chosen = [site for site in sites if site.at_depth(self.length, 'length')]
        for site in chosen:
            self._require_plain(site)
        self.layers = {site.name: self._layers(site) for site in chosen}

    def tune(self, site: Site) -> None:
        if site.name not in self.layers:
            return
        length = site.at_depth(self.length, 'length')
        self.before(site, EmptyTokens(length))
        for layer, parts in self.layers[site.name]:
            if parts.keys() & set('kv'):
                self.after(layer, KeysAndValues(length, parts, len(layer.weight)))
        for argument in bias_arguments(site.module):
            self.before(site, Unbiased(length), argument)
        for module, method in position_biases(site.module):
            self.result(site, module, method, Unbiased(length))
        if site.out_shape[0] == site.in_shape[0]:  # class attention gives the class token alone
            self.after(site, DropLast(length))

    def _require_plain(self, site: Site) -> None:
        """NoSiteError, unless the site has plain attention between all tokens, and no prefix yet."""
        known = [*bias_arguments(site.module), *BIAS_SETTINGS]
        tie = tie_to_positions(site.module, known, [module for module, _ in position_biases(site.module)])
        is_normed = any(
            not isinstance(getattr(site.module, name, None), nn.Identity | None) for name in NORMS
        )
        needs = 'plain attention over all tokens'
        if not site.takes_tokens or site.windows_per_image != 1 or tie or is_normed:
            if tie:
                needs += f', free of {tie!r}'
            elif is_normed:
                needs += ' and unnormed keys'
            raise refuse(self, site, needs)
        if any(OVER_CHANNELS.fullmatch(type(module).__name__) for module in site.module.modules()):
            raise refuse(self, site, 'scores between tokens, not between channels')
        for hook in hooks_before(site.module):
            if isinstance(hook, partial) and isinstance(hook.args[0], EmptyTokens):
                needs = 'an attention without another prefix (the other prefix may be longer)'
                raise refuse(self, site, needs)

    def _layers(self, site: Site) -> list[tuple[Site, dict[str, Rows]]]:
        """The layers that make q, k and v from the attention's tokens, each with the rows of its parts."""
        assert self.backbone is not None
        sites = self.backbone.sites
        names = sites.roles().get('attn.qkv', [])
        found = sites.find(names) if names else []
        layers = [layer for layer in found if layer.name.startswith(f'{site.name}.')]
        for layer in layers:
            if not layer.called:
                reads = f'an attention that calls its layers ({layer.name!r} is read and never called)'
                raise refuse(self, site, reads)
        rows = [self.rows_of_parts(layer) for layer in layers]
        # class attention asks with the class token alone
        is_fit = all(
            layer.in_shape == site.in_shape or parts.keys() == {'q'} for layer, parts in zip(layers, rows)
        )
        if not is_fit or sorted(part for parts in rows for part in parts) != sorted('qkv'):
            raise refuse(self, site, 'an attention that calls one layer for q, k and v, or one each')
        return list(zip(layers, rows))


class EmptyTokens(Delta):
    """(B, N, C) -> (B, N + P, C): zeros behind the others."""

    by_token = True

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return F.pad(x_BNC, (0, 0, 0, self.length))


class KeysAndValues(Delta):
    """Changes the output of a layer for N + P tokens: learned keys and values replace those of the last P.

    The last P queries of the layer are zero.
    parts: the rows of the layer that make the queries 'q', the keys 'k' and the values 'v', which are there.
    """

    by_token = True
    order: torch.Tensor  # the place in [q; k; v] of each row of the layer

    def __init__(self, length: int, parts: Mapping[str, Rows], rows: int):
        super().__init__()
        numbers = {part: torch.arange(rows)[parts[part]] for part in 'qkv' if part in parts}
        self.register_buffer('order', torch.cat(list(numbers.values())).argsort(), persistent=False)
        self.queries = len(numbers.get('q', ()))
        self.names = [name for part, name in (('k', 'key'), ('v', 'value')) if part in parts]
        for name in self.names:
            prefix: Any = nn.Parameter(torch.empty(length, len(numbers[name[0]])))
            nn.init.xavier_uniform_(prefix[None])  # as ModelScope draws (1, P, C)
            prefix.no_weight_decay = True
            setattr(self, name, prefix)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (B, N + P, C), y (B, N + P, rows) -> y"""
        learned = [self.get_parameter(name) for name in self.names]
        queries = learned[0].new_zeros(len(learned[0]), self.queries)
        prefix = torch.cat([queries, *learned], -1)[:, self.order].to(y.dtype)
        return torch.cat([y[:, : -len(prefix)], prefix.expand(len(y), -1, -1)], 1)
