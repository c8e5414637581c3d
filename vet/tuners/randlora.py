"""RandLoRA: an update of full rank from frozen random bases, whose scales train.

Albert et al., ICLR 2025, arXiv:2502.00987

A matrix (out, n) of a weight has a longer side L and a shorter side M. r is the rank of a basis. N = M / r,
rounded up, is the number of bases.
"""

import math
from typing import Unpack

import torch
from torch import nn

from vet.allowed import Count, Places, Positive, Seed
from vet.core.delta import Delta
from vet.core.peft_names import OfRandLoRA
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


class Bases(nn.Module):
    """The frozen bases of all sites: A (r, M) and B (L, N, r), drawn by `seed` on the CPU, and never saved.

    A smaller site takes the first rows and columns. Uniform, with standard deviation 1.
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, rank: int, longer: int, shorter: int, seed: int):
        super().__init__()
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> torch.Tensor:
            empty = torch.empty(shape, dtype=torch.bfloat16)  # PEFT's type
            return nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)

        A = drawn(rank, 1, shorter)
        B = torch.cat([drawn(longer, 1, rank) for _ in range(-(-shorter // rank))], 1)
        self.register_buffer('A', (A[:, 0] / A.std()).float(), persistent=False)
        self.register_buffer('B', (B / B.std()).float(), persistent=False)


class ScaledBases(Delta):
    """W + scale B [lambda_kb A_kj gamma_bj], or its transpose if the weight has fewer rows than columns.

    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. The bracket is (r N, M), and
    B is taken as (L, N r). lambda: (r, N), zero at the start. gamma: (N, M), 1 / max(N, M) at the start.
    """

    linear_in = ('lambda_',)

    def __init__(self, weight_shape: torch.Size, scale: float, bases: Bases):
        super().__init__()
        self.scale = scale
        sides = weight_shape[0], math.prod(weight_shape[1:])
        self.is_wide = sides[0] < sides[1]
        self.longer = max(sides)
        shorter = min(sides)
        count = -(-shorter // len(bases.A))
        self.lambda_ = nn.Parameter(torch.zeros(len(bases.A), count))
        self.gamma = nn.Parameter(torch.full((count, shorter), 1 / max(count, shorter)))
        self.bases: Bases
        object.__setattr__(self, 'bases', bases)

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        count, shorter = self.gamma.shape
        A = self.lambda_[:, :, None] * self.bases.A[:, None, :shorter] * self.gamma
        update = self.scale * self.bases.B[: self.longer, :count].flatten(1) @ A.flatten(0, 1)
        return weight + (update.T if self.is_wide else update).reshape(weight.shape).to(weight.dtype), bias


@TUNERS.register_module()
class RandLoRA(Tuner):
    """W + (alpha / rank) sum over i of B_i L_i A G_i: A and B_i are random and frozen.

    The diagonal matrices L_i and G_i train. The bases together have full rank. A smaller rank means more
    bases, and more trained numbers.
    rank: r, of a basis.
    alpha: alpha / rank scales the update. PEFT takes 640, with rank 32.
    seed: the seed of the bases.
    at: weights of Linear layers and convolutions.
    Parameters per site: N (r + M), with M the shorter side of the weight (out, in kH kW / groups), and N =
        M / r, rounded up.
    Against the released code: the formula, the start, and the bases of PEFT's RandLoRA on Linear layers,
        without its sparse bases and its dropout.
    """

    def __init__(
        self,
        rank: Count = 32,
        alpha: Positive = 640.0,
        seed: Seed = 0,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfRandLoRA],
    ):
        super().__init__(at)
        self.rank = rank
        self.alpha = alpha
        self.seed = seed

    def shared(self, sites: list[Site]) -> None:
        for site in sites:
            require_matrix(self, site)
        out, inside = max(len(site.weight) for site in sites), max(site.weight[0].numel() for site in sites)
        if self.rank > min(out, inside):
            raise UserError(
                f'rank is {self.rank}, but the weights at {self.at!r} have only {min(out, inside)} rows or '
                'columns; give a smaller rank.'
            )
        bases = Bases(self.rank, max(out, inside), min(out, inside), self.seed)
        self.share(bases, sites[0].weight.device)

    def tune(self, site: Site) -> None:
        bases = self.deltas['shared']
        assert isinstance(bases, Bases)
        self.reweight(site, ScaledBases(site.weight.shape, self.alpha / self.rank, bases))
