"""FacT: all layers' updates as one tensor, factorised.   Jie & Deng 2023, arXiv:2212.03145

C: width. r: rank. n: number of (C, C) matrices in all sites, 12 a block: q, k, v, o, four of fc1 and four of
    fc2.
"""

from typing import Annotated

import torch
from torch import nn

from vet.allowed import Count, OneOf, Places, Positive
from vet.core.delta import Delta
from vet.core.deltas import LowRankUpdate
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS


class TensorTrain(Delta):
    """Each of the n matrices has a Sigma_i (r, r).   FacT-TT"""

    linear_in = ('V',)

    def __init__(self, width: int, rank: int, n: int):
        super().__init__()
        self.U, self.V = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(width, rank))
        nn.init.xavier_uniform_(self.U)
        self.make_middle(rank, n)

    def make_middle(self, rank: int, n: int) -> None:
        self.Sigma = nn.Parameter(
            torch.stack([nn.init.xavier_uniform_(torch.empty(rank, rank)) for _ in range(n)])
        )

    def middle(self, which: slice) -> torch.Tensor:
        """The Sigma_i of some matrices: (parts, r, r)."""
        return self.Sigma[which]


class Tucker(TensorTrain):
    """Sigma_i = sum_k P_ik core_k, with one core (r, r, r) for all matrices, and P (n, r).   FacT-TK"""

    linear_in = ('V',)

    def make_middle(self, rank: int, n: int) -> None:
        self.core, self.P = nn.Parameter(torch.empty(rank, rank, rank)), nn.Parameter(torch.empty(n, rank))
        nn.init.xavier_uniform_(self.core)
        nn.init.xavier_uniform_(self.P)

    def middle(self, which: slice) -> torch.Tensor:
        return torch.einsum('nk,kij->nij', self.P[which], self.core)


class FactorUpdate(LowRankUpdate):
    """The update of one weight, which consists of the matrices `which`.

    The matrices are stacked as rows (q, k, v; fc1). If `columns` is true, they stand side by side (fc2).
    order: the place in the stack of each row of the weight. None: the rows lie as they are stacked.
    """

    shared: TensorTrain
    order: torch.Tensor | None

    def __init__(
        self, factors: nn.Module, which: slice, scale: float, columns: bool, order: torch.Tensor | None = None
    ):
        super().__init__()
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

    def extra_repr(self) -> str:
        return f'matrices {self.which.start} to {self.which.stop - 1}, scale={self.scale:g}'


VARIANTS = dict(tt=TensorTrain, tk=Tucker)


@TUNERS.register_module()
class FacT(Tuner):
    """x W' + scale x U Sigma_i V' for the i-th (C, C) matrix. All matrices share U and V (C, r).

    rank: r, the same for all matrices.
    variant: 'tt' (each matrix has a Sigma) or 'tk' (Sigmas mixed from one core). V starts at zero.
    scale: the paper tries 0.01 to 100 for each task.
    at: weights (a C, C) or (C, a C) of one width C. Pyramids such as Swin have several widths and are
        refused.
    """

    def __init__(
        self,
        rank: Count = 32,
        variant: Annotated[str, OneOf(tuple(VARIANTS))] = 'tk',
        scale: Positive = 1.0,
        at: Places = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ):
        super().__init__(at)
        if variant not in VARIANTS:
            raise UnknownNameError('variant of FacT', variant, VARIANTS)
        if type(rank) is not int:
            raise UserError(
                f'rank is {rank!r}; allowed: an int. All sites share their factors, so FacT has one rank.'
            )
        self.rank = rank
        self.variant = variant
        self.scale = scale

    def shared(self, sites: list[Site]) -> None:
        width = min(min(site.weight.shape) for site in sites)
        self.places: dict[str, slice] = {}
        n = 0
        for site in sites:
            shape = site.weight.shape
            if len(shape) != 2 or width not in shape or any(size % width for size in shape):
                raise refuse(
                    self,
                    site,
                    f'weights made of ({width}, {width}) matrices, one width in all blocks (this weight is '
                    f'{tuple(shape)})',
                )
            self.places[site.name] = slice(n, n := n + max(shape) // width)
        self.share(
            VARIANTS[self.variant](width, sites[0].at_depth(self.rank, 'rank'), n), sites[0].weight.device
        )

    def tune(self, site: Site) -> None:
        out, inside = site.weight.shape
        rows = list(self.rows_of_parts(site).values()) if out == 3 * inside else []
        order = (
            None
            if all(isinstance(part, slice) for part in rows)
            else torch.cat([torch.arange(out)[part] for part in rows]).argsort()
        )
        self.reweight(
            site, FactorUpdate(self.deltas['shared'], self.places[site.name], self.scale, inside > out, order)
        )
