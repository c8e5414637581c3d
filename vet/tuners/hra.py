"""HRA: each weight is multiplied by a chain of Householder reflections.

Yuan, Liu, Xu 2024, arXiv:2405.17484
"""

import math
from typing import Unpack

import torch
from torch import nn

from vet.allowed import Counts, Places
from vet.core.deltas import InputLowRank
from vet.core.peft_names import Ranks
from vet.core.ranks import require_matrix
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


class Reflections(InputLowRank):
    """W H_1 … H_r, with H_i = I - 2 u_i u_i' / |u_i|^2

    The product of the reflections is I - U S^-1 U', with the unit vectors u_i as columns of U (n, r), and S
    (r, r) = U'U above the diagonal and 1/2 on the diagonal (Joffrain et al. 2006, "Accumulating Householder
    transformations, revisited").
    weight: (out, in / groups, kH, kW), taken as (out, n), n = in kH kW / groups. u: (n, r).
    Two neighbouring u_i start equal, so that their reflections cancel.
    """

    def __init__(self, inside: int, rank: int):
        super().__init__()
        half = torch.empty(inside, rank // 2)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.u = nn.Parameter(half.repeat_interleave(2, dim=1))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U' (r, n) and -U S^-1 (n, r), in float32 at least: torch solves no equations in bf16 and fp16."""
        u = self.u.to(torch.promote_types(self.u.dtype, torch.float32))
        U = u / u.norm(dim=0)
        S = (U.T @ U).triu(1) + 0.5 * torch.eye(U.shape[1], dtype=U.dtype, device=U.device)
        return U.T, torch.linalg.solve_triangular(S, -U, upper=True, left=False)


@TUNERS.register_module()
class HRA(Tuner):
    """W H_1 … H_r: r Householder reflections of the input. Lengths and angles between rows stay.

    At the start, the reflections cancel in pairs, so the output equals the output of the frozen
    network, except for rounding.
    rank: r, even: one value, a list by depth (0 skips a block), or a dict of path patterns.
    at: weights of Linear layers and convolutions.
    Parameters per site: rank x in kH kW / groups.
    Against the released code: the formula and the start of PEFT's HRA without Gram-Schmidt
    (apply_GS=False), on Linear layers. The paper's regulariser is not here: its weight is 0.
    """

    identity_at_start = False  # the reflections cancel, up to rounding

    def __init__(self, rank: Counts = 8, at: Places = 'attn.qkv', **peft: Unpack[Ranks]):
        super().__init__(at)
        self.rank = rank

    def tune(self, site: Site) -> None:
        rank = site.at_depth(self.rank, 'rank')
        require_matrix(self, site)
        if rank % 2:
            raise UserError(
                f'rank is {rank} at {site.name!r}; the reflections of HRA come in pairs. Give an even rank.'
            )
        if rank:
            self.reweight(site, Reflections(site.weight[0].numel(), rank))
