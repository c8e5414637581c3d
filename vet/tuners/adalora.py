"""AdaLoRA: a budget of ranks, which goes to the most important sites.   Zhang et al. 2023,
arXiv:2303.10512
"""

from typing import Annotated, Any, Unpack

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import MOST, Counts, Dropout, Places, Positives, Share
from vet.core.deltas import LowRank
from vet.core.peft_names import OfAdaLoRA
from vet.core.ranks import check_rank, rank_and_alpha
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


@TUNERS.register_module()
class AdaLoRA(Tuner):
    """W + (alpha / rank) P diag(lambda) Q. A triplet is a column of P, its lambda and a row of Q.

    After each step, only the `budget` most important triplets of all sites keep their lambda. The other
    lambdas become zero. A later step may change them again.
    Importance of a triplet: s(lambda_i) + mean s(P_i) + mean s(Q_i), with s = mean I x mean |I - mean I| of
    the sensitivity I = |w dL/dw|.
    rank: the rank at the start; one value, a list by depth (0 skips a block), or a dict from module path
        patterns to values.
    target: the average rank at the end.
    alpha: the same as for LoRA.
    warmup: the share of the training before the budget falls.
    final: the share of the training after the budget has reached the target. In this share, the statistics of
        the importance do not change. Between warmup and final the budget falls as (1 - t)^3 (sec. 3.3).
    beta1, beta2: the shares of the old value when the means of I and of |I - mean I| are smoothed over the
        steps (sec. 3.2).
    gamma: the weight of the penalty: the sum over the sites of ||P'P - I||^2 + ||Q Q' - I||^2. The norms are
        squared Frobenius norms, as in the paper (sec. 3.1). The authors' code and PEFT take the mean of the
        norms.
    Against the released code: importance, budget and pruning over a whole run. The penalty differs, see
        gamma.
    P and Q start normal of std 0.02, as in the authors' code. lambda starts at zero.
    Parameters per site: rank (in + out + 1), with in = in_channels / groups x kernel of a convolution.
        ViT-B/16 on qkv, rank 12: 442,512.
    """

    def __init__(
        self,
        rank: Counts = 12,
        target: Annotated[float, Interval(gt=0, le=MOST)] = 8,
        alpha: Positives | None = None,
        warmup: Share = 0.1,
        final: Share = 0.5,
        gamma: Annotated[float, Interval(ge=0, le=1e6)] = 0.1,
        beta1: Dropout = 0.85,
        beta2: Dropout = 0.85,
        at: Places = 'attn.qkv',
        **peft: Unpack[OfAdaLoRA],
    ):
        super().__init__(at)
        if min(warmup, final) < 0 or warmup + final >= 1:
            raise UserError(
                f'warmup is {warmup} and final is {final}; allowed: shares of the training from 0 up, '
                'which sum to less than 1.'
            )
        if not (0 < beta1 < 1 and 0 < beta2 < 1):
            raise UserError(f'beta1 is {beta1} and beta2 is {beta2}; allowed: between 0 and 1.')
        if gamma < 0:
            raise UserError(f'gamma is {gamma}; allowed: 0 (no penalty) or more.')
        self.rank = rank
        self.target = target
        self.alpha = alpha
        self.warmup = warmup
        self.final = final
        self.gamma = gamma
        self.beta1 = beta1
        self.beta2 = beta2

    def shared(self, sites: list[Site]) -> None:
        check_rank(self, sites)
        ranks = [rank for site in sites if (rank := site.at_depth(self.rank, 'rank'))]
        if ranks and not 0 < self.target <= sum(ranks) / len(ranks):
            raise UserError(
                f'target is {self.target}; allowed: an average rank above 0, up to the average rank of the '
                f'start, {sum(ranks) / len(ranks):g}.'
            )

    def tune(self, site: Site) -> None:
        rank, alpha = rank_and_alpha(self, site)
        if rank:
            self.reweight(site, Triplets(site.weight.shape, rank, alpha / rank))

    def penalty(self) -> torch.Tensor | None:
        return (
            self.gamma * torch.stack([delta.far_from_orthogonal() for delta in self._triplets()]).sum()
            if self.gamma
            else None
        )

    @torch.no_grad()
    def on_step(self, progress: float) -> None:
        deltas = self._triplets()
        if progress < 1 - self.final:
            for delta in deltas:
                delta.observe(self.beta1, self.beta2)
        importance = torch.cat([delta.importance() for delta in deltas])
        if not importance.any():
            if progress >= 1 - self.final:
                raise UserError(
                    f'final is {self.final}, but AdaLoRA has seen no gradient in the first '
                    f'{1 - self.final:.0%} of the training: make final smaller, or start its stage earlier.'
                )
            return
        # stable: all processes choose the same triplets
        order = importance.argsort(descending=True, stable=True)
        pruned = torch.ones_like(importance, dtype=torch.bool).index_fill_(
            0, order[: self.budget(progress)], False
        )
        for delta, mine in zip(deltas, pruned.split([delta.rank for delta in deltas])):
            delta.Lambda.masked_fill_(mine, 0)
            delta.kept.copy_(~mine)

    def budget(self, progress: float) -> int:
        """The number of triplets that are kept at `progress` (0 to 1)."""
        start = sum(delta.rank for delta in self._triplets())
        end = int(self.target * len(self.deltas))
        left = 1 - min(max((progress - self.warmup) / (1 - self.warmup - self.final), 0), 1)
        return end + int((start - end) * left**3)

    def training_state(self) -> dict[str, torch.Tensor]:
        return {
            f'deltas.{name.replace("/", ".")}': value
            for name, value in self.deltas.named_buffers()
            if not name.endswith('.kept')
        }

    def _triplets(self) -> list[Any]:
        return list(self.deltas.values())


class Triplets(LowRank):
    """W + scale P diag(Lambda) Q, with P (out, rank), Lambda (rank,), Q (rank, in).

    A triplet is P[:, i], Lambda[i] and Q[i]. The buffers hold smoothed statistics of P, Lambda and Q.
    """

    def make(self, in_features: int, num_rows: int) -> None:
        self.P = nn.Parameter(torch.empty(num_rows, self.rank).normal_(0, 0.02))
        self.Lambda = nn.Parameter(torch.zeros(self.rank))
        self.Q = nn.Parameter(torch.empty(self.rank, in_features).normal_(0, 0.02))
        self.kept: torch.Tensor
        # `kept` counts in evaluation: there an average of the weights may stand in place of the weights
        self.register_buffer('kept', torch.ones(self.rank, dtype=torch.bool))
        for name, parameter in list(self.named_parameters()):
            for statistic in ('sensitivity', 'uncertainty'):
                self.register_buffer(f'{name}_{statistic}', torch.zeros_like(parameter), persistent=False)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.Q, self.scale * self.P * (self.Lambda if self.training else self.Lambda * self.kept)

    def far_from_orthogonal(self) -> torch.Tensor:
        """||P'P - I||^2 + ||Q Q' - I||^2, each a sum of squares."""
        eye = torch.eye(self.rank, device=self.P.device, dtype=self.P.dtype)
        return (self.P.T @ self.P - eye).square().sum() + (self.Q @ self.Q.T - eye).square().sum()

    def observe(self, beta1: float, beta2: float) -> None:
        """Adds the gradients of this step to the statistics.

        Parameters without a gradient keep their statistics.
        """
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                sensitivity, uncertainty = self._statistics(name)
                now = (parameter * parameter.grad).abs()
                sensitivity.lerp_(now, 1 - beta1)
                uncertainty.lerp_((now - sensitivity).abs(), 1 - beta2)

    def importance(self) -> torch.Tensor:
        """The importance of each triplet: (rank,)"""
        P, Lambda, Q = (torch.mul(*self._statistics(name)) for name in ('P', 'Lambda', 'Q'))
        return Lambda + P.mean(0) + Q.mean(1)

    def _statistics(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.get_buffer(f'{name}_sensitivity'), self.get_buffer(f'{name}_uncertainty')
