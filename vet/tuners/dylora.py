"""DyLoRA: low-rank updates whose first rows and columns work without the others.

Valipour et al. 2022, arXiv:2210.07558
"""

from collections.abc import Callable
from random import Random
from typing import Annotated, Any

import torch

from vet.allowed import Count, Counts, OneOf, Places, Positives, Seed
from vet.core.deltas import LowRank
from vet.core.ranks import check_rank, rank_and_alpha
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

# (seed, progress, number of possible ranks) -> the index of the rank. 'random' depends on the step alone, so
# that a run can be resumed.
SCHEDULES: dict[str, Callable[[int, float, int], int]] = {
    'random': lambda seed, progress, count: int(Random(f'{seed} {progress}').random() * count),
    'grow': lambda seed, progress, count: min(int(progress * count), count - 1),
    'shrink': lambda seed, progress, count: max(count - 1 - int(progress * count), 0),
}


@TUNERS.register_module()
class DyLoRA(Tuner):
    """h = W x + (alpha / b) B[:, :b] A[:b] x, with one b at a time, from `smallest` to the rank.

    B starts at zero.
    rank, alpha, at: the same as for LoRA. Each site has its own b. If sites have different ranks, each b is
        at the same share of the site's ranks.
    smallest: the smallest b.
    schedule: how b changes over the steps. 'random': b is drawn for each step, and all b are equally likely
        (the paper). 'grow': b goes from `smallest` to the rank, and each b has an equal share of the
        training. 'shrink': the same, backwards. Every row and column up to b trains. In the paper's "frozen"
        way only the b-th trains.
    Against the released code: output and gradients at each b (largest difference 4e-14 of 87), the start and,
        with 'random', each b equally likely. The code also has the way in which only the b-th row and column
        train, which is not here.
    use: the rank of evaluation and merging; a site of a smaller rank uses its full rank. The saved state does
        not hold `use`, so that one file serves every rank. None: the full rank for 'random', the current rank
        otherwise. `use_rank` changes `use`.
    seed: the seed of the draws of 'random'.
    Parameters per site: rank (in + out), with in = in_channels / groups x kernel of a convolution.
        ViT-B/16 on qkv, rank 8: 294,912.
    """

    def __init__(
        self,
        rank: Counts = 8,
        alpha: Positives | None = None,
        schedule: Annotated[str, OneOf(tuple(SCHEDULES))] = 'random',
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
        self.rank = rank
        self.alpha = alpha
        self.schedule = schedule
        self.smallest = smallest
        self.use = use
        self.seed = seed

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
                f'smallest is {self.smallest}, but the rank at {site} is {rank}; give a smaller number.'
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
        """From now on, evaluates and merges at rank b. A site of a smaller rank uses its full rank."""
        deltas: list[Any] = list(self.deltas.values())
        _check(b, max(delta.rank for delta in deltas))
        self.use = b
        for delta in deltas:
            delta.most.fill_(min(b, delta.rank))

    def _rank_at(self, progress: float, rank: int) -> int:
        return self.smallest + SCHEDULES[self.schedule](self.seed, progress, rank - self.smallest + 1)


class NestedLowRank(LowRank):
    """W + (alpha / b) B[:, :b] A[:b], by a mask. So no shape changes with b, and torch.compile compiles once.

    In training, b is `current`. In evaluation, b is `most`. If `lasts` is true, b in evaluation is at most
    `current`.
    """

    current: torch.Tensor
    most: torch.Tensor

    def __init__(self, weight_shape: torch.Size, rank: int, alpha: float, lasts: bool):
        super().__init__(weight_shape, rank, alpha / rank)
        self.alpha = alpha
        self.lasts = lasts
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
