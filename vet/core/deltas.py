"""Deltas: the small trainable modules that tuners place at sites. This file holds the ones several tuners share."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class LowRank(nn.Module):
    """W + scale B A, on whole weights or on slices of their rows (the q, k or v of a fused projection).

    weight_shape: (out, in) of a Linear or (out, in / groups, kH, kW) of a convolution, taken as (out, in kH kW / groups).
    rows: the slices of `out` that get a pair (A_i, B_i) of their own. A is (pairs x rank, in), B is (rows, rank).
    A starts uniform as nn.Linear does, B at zero, so that the update starts at zero.
    """

    def __init__(self, weight_shape: torch.Size, rank: int, scale: float = 1.0, dropout: float = 0.0,
                 rows: list[slice] | None = None):
        super().__init__()
        self.out_features, in_features = weight_shape[0], math.prod(weight_shape[1:])
        self.rows = rows or [slice(0, self.out_features)]
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.A = nn.Parameter(torch.empty(len(self.rows) * rank, in_features))
        self.B = nn.Parameter(torch.zeros(sum(r.stop - r.start for r in self.rows), rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def full_B(self) -> torch.Tensor:
        """scale B as (out, pairs x rank): block-diagonal over the slices, zero in the rows of no slice."""
        if len(self.B) == self.out_features and len(self.rows) == 1:
            return self.scale * self.B
        B = self.B.new_zeros(self.out_features, len(self.A))
        start = 0
        for pair, rows in enumerate(self.rows):
            size = rows.stop - rows.start
            B[rows, pair * self.rank:(pair + 1) * self.rank] = self.scale * self.B[start:start + size]
            start += size
        return B

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in, …), bias (out,) or None -> the same shapes"""
        return weight + (self.full_B() @ self.A).view_as(weight).to(weight.dtype), bias

    @staticmethod
    def splits(module: nn.Module) -> bool:
        """Whether `split` holds for this module: B (A x) is exact, and cheaper than forming W + B A and its gradient."""
        return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)

    def split(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """scale B A x: of tokens (…, in) -> (…, out), or of maps (B, in, H, W) -> (B, out, H', W')."""
        x = F.dropout(x, self.dropout, self.training)
        if isinstance(module, nn.Linear):
            return F.linear(F.linear(x, self.A), self.full_B())
        A = self.A.view(len(self.A), module.in_channels, *module.kernel_size)
        return F.conv2d(module._conv_forward(x, A, None), self.full_B()[:, :, None, None])

    def extra_repr(self) -> str:
        return f'{self.A.shape[1]} -> {self.out_features}, rank={self.rank}, scale={self.scale:g}, pairs={len(self.rows)}'
