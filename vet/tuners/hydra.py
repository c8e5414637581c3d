"""Hydra: one linear branch beside a layer, and one behind it.   Kim et al. 2023, arXiv:2309.06922"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Counts, Dropout, Places, Positive
from vet.core.delta import Delta
from vet.core.ranks import require_matrix
from vet.core.reweight import reweights_of
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS


class Branch(nn.Module):
    """up (down h + d) + u. down starts Xavier-uniform. up, d and u start at zero."""

    def __init__(self, inside: int, width: int, out: int, has_bias: bool):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(width, inside)), nn.Parameter(torch.zeros(out, width))
        nn.init.xavier_uniform_(self.down)
        self.d = nn.Parameter(torch.zeros(width)) if has_bias else None
        self.u = nn.Parameter(torch.zeros(out)) if has_bias else None

    def forward(self, h: torch.Tensor, dropout: float) -> torch.Tensor:
        return F.linear(F.dropout(F.linear(h, self.down, self.d), dropout, self.training), self.up, self.u)

    def shift(self) -> torch.Tensor | None:
        """up d + u"""
        return None if self.d is None or self.u is None else self.up @ self.d + self.u


class Heads(Delta):
    """W + s (P + S W) and b + s (p + S b + q), with P h + p the branch beside, and S h + q the one behind

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. P: (out, n), S: (out, out).
    """

    def __init__(self, weight_shape: torch.Size, width: int, scale: float, dropout: float, has_bias: bool):
        super().__init__()
        out = weight_shape[0]
        inside = math.prod(weight_shape[1:])
        self.scale = scale
        self.dropout = dropout
        self.parallel = Branch(inside, width, out, has_bias)
        self.sequential = Branch(out, width, out, has_bias)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        beside = self.parallel
        behind = self.sequential
        W = weight.flatten(1).to(behind.down.dtype)
        change = beside.up @ beside.down + behind.up @ (behind.down @ W)
        new = weight + self.scale * change.view_as(weight).to(weight.dtype)
        p, q = beside.shift(), behind.shift()
        if bias is None or p is None or q is None:
            return new, bias
        return new, bias + self.scale * (p + behind.up @ (behind.down @ bias.to(W.dtype)) + q).to(bias.dtype)

    def splits(self, module: nn.Module) -> bool:
        """Whether the branch behind reads the output of the module's own weight."""
        return type(module) is nn.Linear and len(reweights_of(module)) == 1

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (…, in), y (…, out) -> (…, out)"""
        added = self.parallel(x, self.dropout) + self.sequential(y, self.dropout)
        return y + (self.scale * added).to(y.dtype)


@TUNERS.register_module()
class Hydra(Tuner):
    """f(x) + s (U1 (D1 x + d1) + u1) + s (U2 (D2 f(x) + d2) + u2), with f(x) = W x + b. All merge into f.

    width: the width of both branches: one value, a list by depth (0 skips a block), or a dict of patterns.
    scale: s. The released VTAB configs take 0.1 to 4.5, by task.
    dropout: of the hidden values, in training. The released VTAB configs take 0 to 0.2. Only Linear layers
        take dropout.
    at: weights of Linear layers and convolutions. The paper takes the last layers of attention and FFN. A
        layer without bias has branches without d and u.
    Parameters per site: width (in + 3 out + 2) + 2 out; ViT-B/16, width 2: 239,712.
    Against the released code: output, gradients, start and dropout of its VTAB code. The code's own merge
        writes the FFN's layer into the attention; vet's merge is exact.
    """

    def __init__(
        self,
        width: Counts = 2,
        scale: Positive = 1.0,
        dropout: Dropout = 0.0,
        at: Places = ('attn.proj', 'mlp.fc2'),
    ):
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        super().__init__(at)
        self.width = width
        self.scale = scale
        self.dropout = dropout

    def tune(self, site: Site) -> None:
        width = site.at_depth(self.width, 'width')
        require_matrix(self, site)
        if not width:
            return
        if self.dropout and not (site.called and type(site.module) is nn.Linear):
            raise refuse(self, site, 'a Linear that is called (for its dropout)')
        has_bias = site.bias is not None
        self.reweight(site, Heads(site.weight.shape, width, self.scale, self.dropout, has_bias))
