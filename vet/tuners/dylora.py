"""DyLoRA: low-rank updates whose first rows and columns work without the others.   Valipour et al.
2022, arXiv:2210.07558
"""

from collections.abc import Callable
from random import Random
from typing import Any

import torch

from vet.allowed import Count, Counts, Places, Positives, Seed
from vet.core.deltas import LowRank
from vet.core.site import Site
from vet.core.tuner import Tuner, check_rank, rank_and_alpha
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

SCHEDULES: dict[
    str, Callable[[int, float, int], int]
] = {  # (seed, progress, how many ranks there are) -> which of them
    'random': lambda seed, progress, count: int(
        Random(f'{seed} {progress}').random() * count
    ),  # of the step alone: resumable
    'grow': lambda seed, progress, count: min(int(progress * count), count - 1),
    'shrink': lambda seed, progress, count: max(count - 1 - int(progress * count), 0),
}


@TUNERS.register_module()
class DyLoRA(Tuner):
    """h = W x + (alpha / b) B[:, :b] A[:b] x, with one b at a time from `smallest` to the rank; B is zero at
    the start.

    rank, alpha, at: as of LoRA. A site of another rank than the others has its own b, as far along its own
        ranks.
    schedule: how b goes over the steps. 'random': drawn anew for each step, all b equally likely (the paper);
        'grow', 'shrink': from `smallest` to the rank or back, each b for an equal share of the training.
        Every row and column up to b trains, not the b-th alone as in the paper's "frozen" way.
    use: the rank of evaluation and merging, up to which a site has it; no part of the saved state, so that
        one file serves every rank. None: the full rank for 'random', the current one otherwise. `use_rank`
        changes it.
    Parameters per site: rank (in + out), with in = in_channels / groups x kernel of a convolution.
        ViT-B/16 on qkv, rank 8: 294,912.
    """

    def __init__(
        self,
        rank: Counts = 8,
        alpha: Positives | None = None,
        schedule: str = 'random',
        smallest: Count = 1,
        use: Count | None = None,
        seed: Seed = 0,
        at: Places = 'attn.qkv',
    ):
        super().__init__(at)
        if schedule not in SCHEDULES:
            raise UnknownNameError('schedule of DyLoRA', schedule, SCHEDULES)
        if smallest < 1:
            raise UserError(f'smallest is {smallest}; allowed: a rank from 1 up.')
        self.rank, self.alpha, self.schedule, self.smallest, self.use, self.seed = (
            rank,
            alpha,
            schedule,
            smallest,
            use,
            seed,
        )

    def shared(self, sites: list[Site]) -> None:
        check_rank(self, sites)
        if self.use is not None:
            _check(self.use, max(site.at_depth(self.rank, 'rank') for site in sites))

    def tune(self, site: Site) -> None:
        rank, alpha = rank_and_alpha(self, site)
        if not rank:
            return
        if self.smallest > rank:
            raise UserError(
                f'smallest is {self.smallest}, but the rank at {site} is {rank}; give a smaller one.'
            )
        delta = NestedLowRank(site.weight.shape, rank, alpha, self.schedule != 'random')
        delta.current.fill_(self._rank_at(0.0, rank))
        delta.most.fill_(rank if self.use is None else min(self.use, rank))
        self.reweight(site, delta)

    def on_step(self, progress: float) -> None:
        deltas: list[Any] = list(self.deltas.values())
        for delta in deltas:
            delta.current.fill_(self._rank_at(progress, delta.rank))

    def use_rank(self, b: int) -> None:
        """Evaluates and merges, from now on, at rank b, or at the full rank of a site that has less."""
        deltas: list[Any] = list(self.deltas.values())
        _check(b, max(delta.rank for delta in deltas))
        self.use = b
        for delta in deltas:
            delta.most.fill_(min(b, delta.rank))

    def _rank_at(self, progress: float, rank: int) -> int:
        return self.smallest + SCHEDULES[self.schedule](self.seed, progress, rank - self.smallest + 1)


class NestedLowRank(LowRank):
    """W + (alpha / b) B[:, :b] A[:b], by a mask, so that no shape changes with b and nothing is compiled
    anew.

    b: `current` in training; in evaluation `most`, and no more than `current` where that `lasts`.
    """

    current: torch.Tensor
    most: torch.Tensor

    def __init__(self, weight_shape: torch.Size, rank: int, alpha: float, lasts: bool):
        super().__init__(weight_shape, rank, alpha / rank)
        self.alpha, self.lasts = alpha, lasts
        self.register_buffer('current', torch.tensor(rank))
        self.register_buffer('most', torch.tensor(rank), persistent=False)

    def full_B(self) -> torch.Tensor:
        evaluated = torch.minimum(self.current, self.most) if self.lasts else self.most
        b = self.current if self.training else evaluated
        return self.alpha * self.B * (torch.arange(self.rank, device=b.device) < b) / b


def _check(b: int, largest: int) -> None:
    if not 1 <= b <= largest:
        raise UserError(
            f'the rank to use is {b}; allowed: 1 to {largest}, the largest rank that was trained.'
        )
