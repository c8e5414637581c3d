"""FacT: all layers' updates as one tensor, factorised.   Jie & Deng 2023, arXiv:2212.03145

C: width. r: rank. n: number of (C, C) matrices in all sites, 12 a block: q, k, v, o, four of fc1 and four of
    fc2.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Count, Dropout, OneOf, Places, Positive
from vet.core.delta import Delta
from vet.core.deltas import LowRankUpdate
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS


class TensorTrain(Delta):
    """Each of the n matrices has a Sigma_i (r, r).   FacT-TT

    fans: for each matrix, how many numbers of rank r its map reads: r, or 4 r in fc2.
    """

    linear_in = ('V',)

    def __init__(self, width: int, rank: int, fans: list[int]):
        super().__init__()
        self.U, self.V = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(width, rank))
        nn.init.uniform_(self.U, -(width**-0.5), width**-0.5)  # as nn.Linear draws a map from the width
        self.make_middle(rank, fans)

    def make_middle(self, rank: int, fans: list[int]) -> None:
        bound_N11 = torch.tensor(fans).rsqrt()[:, None, None]  # as nn.Linear draws a map from the fan
        self.Sigma = nn.Parameter((2 * torch.rand(len(fans), rank, rank) - 1) * bound_N11)

    def middle(self, which: slice) -> torch.Tensor:
        """The Sigma_i of some matrices: (parts, r, r)."""
        return self.Sigma[which]


class Tucker(TensorTrain):
    """Sigma_i = sum_k P_ik core_k, with one core (r, r, r) for all matrices, and P (n, r).   FacT-TK"""

    linear_in = ('V',)

    def make_middle(self, rank: int, fans: list[int]) -> None:
        self.core = nn.Parameter(torch.empty(rank, rank, rank))
        self.P = nn.Parameter(torch.empty(len(fans), rank))
        nn.init.xavier_uniform_(self.core)
        nn.init.xavier_uniform_(self.P)

    def middle(self, which: slice) -> torch.Tensor:
        return torch.einsum('nk,kij->nij', self.P[which], self.core)


class FactorUpdate(LowRankUpdate):
    """The update of one weight, which consists of the matrices `which`.

    The matrices are stacked as rows (q, k, v; fc1). If `columns` is true, they stand side by side (fc2).
    order: the place in the stack of each row of the weight. None: the rows lie as they are stacked.
    dropout: of Sigma' U' x, before V, in training.
    """

    shared: TensorTrain
    order: torch.Tensor | None

    def __init__(
        self,
        factors: nn.Module,
        which: slice,
        scale: float,
        columns: bool,
        order: torch.Tensor | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        self.register_buffer('order', order, persistent=False)
        object.__setattr__(self, 'shared', factors)
        self.which = which
        self.scale = scale
        self.columns = columns

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        A = self.shared.U.T
        B = self.scale * self.shared.V @ self.shared.middle(self.which).transpose(1, 2)  # (parts, C, r)
        if not self.columns:
            return A, B.flatten(0, 1) if self.order is None else B.flatten(0, 1)[self.order]
        return torch.block_diag(*[A] * len(B)), torch.cat(list(B), 1)

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + V drop(Sigma' U' x): x (…, in), y (…, out)"""
        if not (self.dropout and self.training):
            return super().split(module, x, y)
        Sigma_NRR = self.shared.middle(self.which)
        U = self.shared.U
        V = self.shared.V
        if self.columns:  # the parts of x lie side by side, and give one part of y
            h = torch.einsum('...nr,nrs->...s', x.unflatten(-1, (len(Sigma_NRR), -1)) @ U, Sigma_NRR)
            return y + self.scale * (F.dropout(h, self.dropout) @ V.T)
        h = torch.einsum('...r,nrs->...ns', x @ U, Sigma_NRR)
        update = self.scale * (F.dropout(h, self.dropout) @ V.T).flatten(-2)
        return y + (update if self.order is None else update[..., self.order])

    def adds_product(self) -> bool:
        return not (self.training and self.dropout)

    def extra_repr(self) -> str:
        return f'matrices {self.which.start} to {self.which.stop - 1}, scale={self.scale:g}'


VARIANTS = dict(tt=TensorTrain, tk=Tucker)


@TUNERS.register_module()
class FacT(Tuner):
    """x W' + scale x U Sigma_i V' for the i-th (C, C) matrix. All matrices share U and V (C, r).

    rank: r, the same for all matrices.
    variant: 'tt' (each matrix has a Sigma) or 'tk' (Sigmas mixed from one core). V starts at zero.
    scale: the paper tries 0.01 to 100 for each task.
    dropout: of Sigma' U' x, before V, in training. The released code fixes 0.1. Only Linear layers take it.
    U and TT's Sigmas start uniform as nn.Linear draws them: U in ±C^-1/2, a Sigma in ±r^-1/2, in fc2 in
        ±(4 r)^-1/2. TK's core and P start Xavier-uniform.
    Against the released code: TT in output, gradients, start and dropout with dropout=0.1. TK too at q, k, v
        and o. At fc1 and fc2, TK's code cuts the Sigmas out of a reshaped tensor, so that each mixes four;
        vet follows the paper's formula.
    at: weights (a C, C) or (C, a C) of one width C. Pyramids such as Swin have several widths and are
        refused.
    """

    def __init__(
        self,
        rank: Count = 32,
        variant: Annotated[str, OneOf(tuple(VARIANTS))] = 'tk',
        scale: Positive = 1.0,
        dropout: Dropout = 0.0,
        at: Places = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ):
        super().__init__(at)
        if not 0 <= dropout < 1:
            raise UserError(f'dropout is {dropout}; allowed: 0 up to, not including, 1.')
        if variant not in VARIANTS:
            raise UnknownNameError('variant of FacT', variant, VARIANTS)
        if type(rank) is not int:
            raise UserError(
                f'rank is {rank!r}; allowed: an int. All sites share their factors, so FacT has one rank.'
            )
        self.rank = rank
        self.variant = variant
        self.scale = scale
        self.dropout = dropout

    def shared(self, sites: list[Site]) -> None:
        width = min(min(site.weight.shape) for site in sites)
        rank = sites[0].at_depth(self.rank, 'rank')
        self.places: dict[str, slice] = {}
        fans: list[int] = []
        for site in sites:
            shape = site.weight.shape
            if len(shape) != 2 or width not in shape or any(size % width for size in shape):
                raise refuse(
                    self,
                    site,
                    f'weights made of ({width}, {width}) matrices, one width in all blocks (this weight is '
                    f'{tuple(shape)})',
                )
            number = max(shape) // width
            start = len(fans)
            fans += [rank * (number if shape[1] > shape[0] else 1)] * number
            self.places[site.name] = slice(start, len(fans))
        self.share(VARIANTS[self.variant](width, rank, fans), sites[0].weight.device)

    def tune(self, site: Site) -> None:
        out, inside = site.weight.shape
        rows = list(self.rows_of_parts(site).values()) if out == 3 * inside else []
        order = (
            None
            if all(isinstance(part_rows, slice) for part_rows in rows)
            else torch.cat([torch.arange(out)[part_rows] for part_rows in rows]).argsort()
        )
        delta = FactorUpdate(
            self.deltas['shared'], self.places[site.name], self.scale, inside > out, order, self.dropout
        )
        self.reweight(site, delta)
