"""Kinds of LowRank that start from the frozen weight or from shared projections: DoRA, PiSSA and VeRA.

r: rank. m, norms: (out,). A (r, in), B (out, r). Several parts of rows are stacked, as in LowRank.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.deltas import LowRank
from vet.core.products import add_product, through
from vet.core.reweight import reweights_of
from vet.errors import UserError


class DoRA(LowRank):
    """m (W + scale B A) / ||W + scale B A||, m and norms by output row.   Liu et al. 2024, 2402.09353, eq. 5

    The norm counts as a constant in the backward pass (their sec. 4.3). m starts as ||W||. So at the start m
    / norm is exactly 1, on the device of the attach.
    """

    takes_dropout = False
    reads_weight = True
    has_routes = False
    bound_to_weight = ('m',)

    def make(self, in_features: int, num_rows: int) -> None:
        super().make(in_features, num_rows)
        self.m = nn.Parameter(torch.empty(num_rows))

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        self.m.data = self._norms(weight)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        moved, _ = super().forward(weight, None)
        return self._ratio(moved.detach()).view(-1, *[1] * (weight.dim() - 1)).to(weight.dtype) * moved, bias

    def _ratio(self, moved: torch.Tensor) -> torch.Tensor:
        """m / ||W + scale B A|| (out,). Rows of no part get 1."""
        ratio = self.m / self._norms(moved).clamp_min(1e-12)  # a pruned row has norm 0
        if len(ratio) < self.out_features:
            full = ratio.new_ones(self.out_features)
            for rows, values in zip(self.rows, ratio.split(self.sizes)):
                full[rows] = values
            ratio = full
        return ratio

    def _norms(self, weight: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(weight.flatten(1), dim=1)
        return torch.cat([norms[rows] for rows in self.rows])

    def splits(self, module: nn.Module) -> bool:
        """Whether the delta is the only delta at the module.

        Otherwise the norms would not belong to the frozen weight of the module.
        """
        return super().splits(module) and len(reweights_of(module)) == 1

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + (ratio - 1) (y - bias) + ratio B A x: exactly y if ratio is 1 and B is 0, as at the start"""
        assert isinstance(module, nn.Linear | nn.Conv2d)
        A, B = self.factors()
        with torch.no_grad():
            moved = module.weight + (B @ A).view_as(module.weight)
        ratio = self._ratio(moved)
        bias = module.bias
        if y.dim() > 3 and isinstance(module, nn.Conv2d):
            ratio = ratio[:, None, None]
            bias = None if bias is None else bias[:, None, None]
        plain = y if bias is None else y - bias.to(y.dtype)
        return y + (ratio - 1).to(y.dtype) * plain + ratio.to(y.dtype) * through(module, x, A, B)


class PiSSA(LowRank):
    """W + scale (B A - B0 A0). scale B0 A0 is W's best rank-r part; B and A start at B0 and A0.

    2404.02948, eq. 2-4

    With W = U S V': A0 = sqrt(S / scale) V', B0 = U sqrt(S / scale), the first r of each. A0 and B0 are
    saved.
    """

    linear_in = ('B', 'B0')
    bound_to_weight = ('A', 'B')
    A0: torch.Tensor
    B0: torch.Tensor

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        if self.scale <= 0:
            raise UserError(
                f'alpha / rank is {self.scale:g}, but PiSSA divides singular values by it; give a positive '
                'alpha.'
            )
        smallest = min(*self.sizes, weight[0].numel())
        if self.rank > smallest:
            raise UserError(
                f'rank is {self.rank}, but PiSSA starts from singular values, of which '
                f'{tuple(weight.shape)} has {smallest}.'
            )
        parts = [torch.linalg.svd(weight.flatten(1)[rows].float(), full_matrices=False) for rows in self.rows]
        root = [(S[: self.rank] / self.scale).sqrt() for _, S, _ in parts]
        self.A.data = torch.cat([s[:, None] * V[: self.rank] for s, (_, _, V) in zip(root, parts)])
        self.B.data = torch.cat([U[:, : self.rank] * s for s, (U, _, _) in zip(root, parts)])
        self.register_buffer('A0', self.A.detach().clone())
        self.register_buffer('B0', self.B.detach().clone())

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """B A - B0 A0 as (B - B0) A + B0 (A - A0), which is zero at the start, whatever the rounding"""
        B = self.full_B()
        B0 = self.full_B0()
        return torch.cat([self.A, self.A - self.A0]), torch.cat([B - B0, B0], 1)

    def full_B0(self) -> torch.Tensor:
        """scale B0, as full_B is scale B"""
        return self.placed(self.scale * self.B0)

    def adds_product(self) -> bool:
        return not (self.training and self.dropout)

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + scale (B A d(x) - B0 A0 x), d the dropout"""
        if self.adds_product():
            return super().split(module, x, y)
        dropped = F.dropout(x, self.dropout)
        return add_product(
            module, dropped - x, add_product(module, dropped, y, *self.factors()), self.A0, self.full_B0()
        )


class Projections(nn.Module):
    """VeRA's frozen random A and B, one pair for each shape.

    `seed` draws them on the CPU, so they are never saved.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def pair(self, rank: int, in_features: int, out: int, like: torch.Tensor) -> tuple[str, str]:
        """The names of A (rank, in) and B (out, rank). The first call draws them."""
        generator = torch.Generator().manual_seed(self.seed)
        names = f'A_{rank}x{in_features}_{out}', f'B_{out}x{rank}_{in_features}'
        for name, shape in zip(names, ((rank, in_features), (out, rank))):
            if not hasattr(self, name):
                drawn = nn.init.kaiming_uniform_(torch.empty(shape), generator=generator)
                self.register_buffer(name, drawn.to(like.device), persistent=False)
        return names


class VeRA(LowRank):
    """W + scale diag(b) B diag(d) A. A and B are frozen, and shared by equal shapes. b and d train.
    2310.11454, eq. 2
    """

    shares = Projections
    linear_in = ('b',)
    shared: Projections

    def make(self, in_features: int, num_rows: int) -> None:
        self.d = nn.Parameter(torch.full((len(self.rows) * self.rank,), 0.1))
        self.b = nn.Parameter(torch.zeros(num_rows))

    def start(self, weight: torch.Tensor, shared: nn.Module | None) -> None:
        assert isinstance(shared, Projections)
        self.names = [shared.pair(self.rank, weight[0].numel(), size, weight) for size in self.sizes]
        object.__setattr__(self, 'shared', shared)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        A = torch.cat([self.shared.get_buffer(name) for name, _ in self.names])
        B = torch.cat([self.shared.get_buffer(name) for _, name in self.names])
        return self.d[:, None] * A, self.placed(self.scale * self.b[:, None] * B)
