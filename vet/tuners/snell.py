"""SNELL: an update made of distances between learned points, of which only the largest count.

Shen et al. 2024, arXiv:2411.01800
"""

import math

import torch
from torch import nn

from vet.allowed import Count, Dropout, Places
from vet.core.attention import Rows
from vet.core.delta import Delta
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS

SCALE = 0.1  # of the distances, in the authors' code


class Distances(Delta):
    """W + sparse(K), with K_oi = SCALE (|a_i - b_o| - |a'_i - b'_o|), apart for each part of the rows

    sparse(K) = K |K| where |K| is above its quantile `sparsity`, and else 0. The factor |K| counts as a
    constant in the backward pass. Without sparsity, sparse(K) = K.
    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. Points have r / 2
    coordinates: a of each part (2, n, r / 2), b (2, rows, r / 2).
    """

    def __init__(self, weight_shape: torch.Size, rank: int, sparsity: float, rows: list[Rows]):
        super().__init__()
        out = weight_shape[0]
        inside = math.prod(weight_shape[1:])
        self.sparsity = sparsity
        numbers = [torch.arange(out)[part_rows] for part_rows in rows]
        self.places: torch.Tensor
        self.register_buffer('places', torch.cat(numbers).argsort(), persistent=False)
        self.a = nn.ParameterList(torch.empty(2, inside, rank // 2) for _ in rows)
        self.b = nn.ParameterList(torch.empty(2, len(part_numbers), rank // 2) for part_numbers in numbers)
        for points in (*self.a, *self.b):
            nn.init.kaiming_uniform_(points, a=math.sqrt(5))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts = []
        for a, b in zip(self.a, self.b):
            plus, minus = torch.cdist(b, a)
            parts.append(self.sparse(SCALE * (plus - minus)))
        update = torch.cat(parts)[self.places]
        return weight + update.view_as(weight).to(weight.dtype), bias

    def sparse(self, K: torch.Tensor) -> torch.Tensor:
        if not self.sparsity:
            return K
        size = K.detach().abs()
        place = math.floor(self.sparsity * (size.numel() - 1))
        least = size.flatten().kthvalue(place + 1).values
        return K * size.where(size > least, 0)


@TUNERS.register_module()
class SNELL(Tuner):
    """W + sparse(K): K is a kernel matrix of high rank, made of few numbers. Most of its entries become zero.

    The sizes of the entries compete in each step: an entry acts if it is above the quantile.
    rank: r, even. A point has r / 2 coordinates.
    sparsity: the share of entries that are zero. The released scripts take 0 to 0.8 on FGVC and 0 to 0.995 on
        VTAB, by dataset.
    at: weights of Linear layers and convolutions. Queries, keys and values of a fused projection have their
        own points, if a forward shows their rows.
    Parameters per site: rank (in kH kW / groups + out), three times with a third of out for a fused
        projection; ViT-B/16, rank 8: 1,327,104.
    Against the released code: output and gradients of its linear layers (largest difference 6e-16), and the
        start, which is near the identity. The drop path and dropout of its branch, 0.1 each, are not here.
    """

    identity_at_start = False

    def __init__(
        self,
        rank: Count = 32,
        sparsity: Dropout = 0.9,
        at: Places = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ):
        if rank % 2:
            raise UserError(f'rank is {rank}; a point of SNELL has rank / 2 coordinates. Give an even rank.')
        super().__init__(at)
        self.rank = rank
        self.sparsity = sparsity

    def tune(self, site: Site) -> None:
        require_matrix(self, site)
        rows = (
            list(self.rows_of_parts(site).values()) if len(site.weight) == 3 * site.weight[0].numel() else []
        )
        covered = sum(len(torch.arange(len(site.weight))[part_rows]) for part_rows in rows)
        whole: list[Rows] = [slice(0, len(site.weight))]
        parts = rows if covered == len(site.weight) else whole
        self.reweight(site, Distances(site.weight.shape, self.rank, self.sparsity, parts))
