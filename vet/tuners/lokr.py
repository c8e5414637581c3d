"""LoKr: Kronecker products as updates.

KronA, Edalati et al. 2022, arXiv:2212.10650; LyCORIS, Yeh et al. 2024, 2309.14859
"""

import math
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import MOST, Counts, Places, Positives
from vet.core.autograd import AutogradContext
from vet.core.delta import Delta
from vet.core.peft_names import OfLoKr
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS
from vet.torch_private import is_recorded


class Kronecker(Delta):
    """W + scale w1 (x) w2, with w1 (o1, i1), which starts at zero, and w2 (o2, i2 kH kW).

    If a low-rank product is smaller, w2 is a low-rank product. For x (…, i1 i2) taken as (…, i1, i2), the
    update gives w1 x w2'. So a Linear forms neither the Kronecker product nor W's gradient.
    """

    linear_in = ('w1',)

    def __init__(self, weight_shape: torch.Size, rank: int, scale: float, factor: int):
        super().__init__()
        (o1, o2), (i1, i2) = factorized(weight_shape[0], factor), factorized(weight_shape[1], factor)
        self.kernel = weight_shape[2:]
        self.scale = scale
        self.w1 = nn.Parameter(torch.zeros(o1, i1))
        self.w2_b: nn.Parameter | None = None
        inside = i2 * math.prod(self.kernel)
        if rank < max(o2, i2) / 2:
            self.w2_a, self.w2_b = (
                nn.Parameter(torch.empty(o2, rank)),
                nn.Parameter(torch.empty(rank, inside)),
            )
        else:
            self.w2_a = nn.Parameter(torch.empty(o2, inside))
        for drawn in (self.w2_a, self.w2_b):
            if drawn is not None:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))

    @property
    def w2(self) -> torch.Tensor:
        """(o2, i2 kH kW)"""
        return self.w2_a if self.w2_b is None else self.w2_a @ self.w2_b

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in, …), bias (out,) or None -> the same shapes"""
        w1 = self.w1.view(*self.w1.shape, *[1] * len(self.kernel))
        w2 = self.w2.view(len(self.w2_a), -1, *self.kernel)
        return weight + self.scale * torch.kron(w1, w2).to(weight.dtype), bias

    def splits(self, module: nn.Module) -> bool:
        """Whether `split` is exact for this module."""
        return type(module) is nn.Linear

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (…, in), y (…, out) -> (…, out)"""
        x = x.to(y.dtype).reshape(-1, self.w1.shape[1], x.shape[-1] // self.w1.shape[1])
        w1, w2 = (self.scale * self.w1).to(y.dtype), self.w2.to(y.dtype)
        update = w1 @ (x @ w2.T) if is_recorded() else KroneckerLinear.apply(x, w1, w2)
        return y + update.view(y.shape)


class KroneckerLinear(torch.autograd.Function):
    """w1 x w2'. x (n, i1, i2), w1 (o1, i1), w2 (o2, i2) -> (n, o1, o2).

    The backward pass computes x w2' again. So a step keeps nothing but the inputs.
    """

    @staticmethod
    def forward(ctx: AutogradContext, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w1, w2)
        return w1 @ (x @ w2.T)

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w1, w2 = ctx.saved_tensors
        gy = gradients[0]
        gh = w1.T @ gy
        gx = gh @ w2 if ctx.needs_input_grad[0] else None
        g1 = torch.einsum('nab,ncb->ac', gy, x @ w2.T) if ctx.needs_input_grad[1] else None
        g2 = gh.flatten(0, 1).T @ x.flatten(0, 1) if ctx.needs_input_grad[2] else None
        return gx, g1, g2


def factorized(size: int, factor: int) -> tuple[int, int]:
    """size = a b.

    If `factor` divides size, a is `factor`. If not, a is the largest divisor up to `factor` and up to b. If
    `factor` is -1, a is as near to b as possible.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    a = max(a for a in range(1, math.isqrt(size) + 1) if size % a == 0 and (factor < 0 or a <= factor))
    return a, size // a


@TUNERS.register_module()
class LoKr(Tuner):
    """W + (alpha / rank) w1 (x) w2, a Kronecker product of w1 (o1, i1) and w2 (o2, i2).

    out = o1 o2 and in = i1 i2.
    rank: if rank < max(o2, i2) / 2, w2 is a product of this rank. One value, a list by depth, or a dict of
        patterns.
    alpha: None means alpha = rank.
    factor: o1 and i1. -1: o1 and i1 are as near to the square roots as possible.
    at: weights of Linear layers and convolutions.
    Parameters per site: o1 i1 + rank (o2 + i2 kH kW), or o1 i1 + o2 i2 kH kW if w2 is no product.
    Against the released code: LyCORIS's products in output and gradients (largest difference 2e-15). There,
        w2 starts at zero in place of w1, and alpha does not count if w2 is no product; here the start and
        alpha are PEFT's.
    The formula is that of PEFT's LoKr with flattened convolutions (its use_effective_conv2d=False,
    decompose_both=False).
    """

    def __init__(
        self,
        rank: Counts = 4,
        alpha: Positives | None = None,
        factor: Annotated[int, Interval(ge=-1, le=MOST)] = -1,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfLoKr],
    ):
        super().__init__(at)
        if type(factor) is not int or factor == 0 or factor < -1:
            raise UserError(f'factor is {factor!r}; allowed: a positive int, or -1.')
        self.rank = rank
        self.alpha = alpha
        self.factor = factor

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank:
            alpha = site.number(self.alpha, 'alpha')
            self.reweight(
                site, Kronecker(site.weight.shape, rank, 1.0 if alpha is None else alpha / rank, self.factor)
            )
