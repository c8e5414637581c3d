"""MoLoRA: a mixture of low-rank experts, gated by the input.   Zadouri et al. 2023, arXiv:2309.05444"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Count, Counts, Places, Positives
from vet.core.delta import Delta
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# E experts of rank r


@TUNERS.register_module()
class MoLoRA(Tuner):
    """h = W x + (alpha / rank) sum over e of g_e(x) B_e A_e x, with g = softmax(G x).

    Each B_e starts at zero.
    rank, alpha: the same as for LoRA, for each expert.
    experts: E, at least 2.
    topk: only the k largest g_e count, and they sum to 1. At least 2, or G would never train. None: all g_e
        count, as in the paper.
    At a Linear, each token has its own gate. At a plain Conv2d, which the paper does not have, each image has
    its own gate, from the mean of x over its places. No router loss balances the experts. The update depends
    on the input, so it cannot be merged.
    Against the released code: (in JAX) the same products in output and gradients (largest difference 2e-15).
        There, G has a bias, A and G start normal of std 0.02, and alpha is 16.
    Parameters per site: E (rank (in + out) + C), with C channels in and in = C x kernel of a convolution.
        ViT-B/16 on qkv, four experts of rank 4: 626,688.
    """

    def __init__(
        self,
        rank: Counts = 4,
        experts: Count = 4,
        topk: Count | None = None,
        alpha: Positives | None = None,
        at: Places = 'attn.qkv',
    ):
        super().__init__(at)
        if experts < 2:
            raise UserError(f'experts is {experts}; allowed: 2 or more (for a single expert, use LoRA).')
        if topk is not None and not 2 <= topk <= experts:
            raise UserError(
                f'topk is {topk}; allowed: 2 to {experts}, the number of experts, or None for all.'
            )
        self.rank = rank
        self.experts = experts
        self.topk = topk
        self.alpha = alpha

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        layer = site.module
        if not rank:
            return
        if type(layer) is not nn.Linear and (type(layer) is not nn.Conv2d or layer.groups != 1):
            raise refuse(self, site, 'a Linear or a plain Conv2d of one group')
        alpha = site.number(self.alpha, 'alpha')
        self.after(
            site, Experts(layer, rank, self.experts, self.topk, 1.0 if alpha is None else alpha / rank)
        )


class Experts(Delta):
    """y + scale sum over e of g_e B_e A_e x beside a Linear or Conv2d.

    A: all A_e, (E r, in, …). B: all B_e, (out, E r).
    """

    by_token = True

    def __init__(self, layer: Any, rank: int, experts: int, topk: int | None, scale: float):
        super().__init__()
        self.experts = experts
        self.topk = topk
        self.scale = scale
        self.is_conv = isinstance(layer, nn.Conv2d)
        out, channels = layer.weight.shape[:2]
        self.A = (
            nn.Linear(channels, experts * rank, bias=False)
            if not self.is_conv
            else nn.Conv2d(
                channels,
                experts * rank,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                bias=False,
                padding_mode=layer.padding_mode,
            )
        )
        self.B = nn.Parameter(torch.zeros(out, experts * rank))
        self.G = nn.Linear(channels, experts, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Tokens x (…, in), y (…, out), or maps x (B, in, H, W), y (B, out, H', W')."""
        h = self.A(x).movedim(1, -1) if self.is_conv else self.A(x)
        g = self.gate(x.mean((2, 3))[:, None, None] if self.is_conv else x)
        gated = (h.unflatten(-1, (self.experts, -1)) * g[..., None]).flatten(-2)
        update = self.scale * F.linear(gated, self.B)
        return y + (update.movedim(-1, 1) if self.is_conv else update).to(y.dtype)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, E), which sum to 1."""
        scores = self.G(x)
        if self.topk is not None:
            values, index = scores.topk(self.topk)
            scores = torch.full_like(scores, -torch.inf).scatter(-1, index, values)
        return scores.softmax(-1)
