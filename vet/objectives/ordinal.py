"""The objective of classes that have an order: grades, ages in groups, stages of a disease."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from vet.core.objective import Answer
from vet.core.one_class import OneClass
from vet.core.permits import permits
from vet.errors import UserError
from vet.registry import OBJECTIVES

SHOWN = 20  # names of ranks in a line


@OBJECTIVES.register_module()
@permits()
class Ordinal(OneClass):
    """One of K ordered classes for each image. `classes` lists them from the lowest rank to the highest.

    Shi, Cao, Raschka 2021, arXiv:2111.08851

    The head has K - 1 outputs: sigmoid(f_k) = P(y > k | y >= k). So P(y > k) is the product of sigmoid(f_0) …
    sigmoid(f_k), which never rises with k. The head Linear is the model of CORN. The head CumulativeLink is
    the cumulative link model. The scores are P(y = k), and sum to 1. The answer is the median: the number of
    steps k with P(y > k) > 0.5. `pipeline` returns {'scores': [...], 'labels': [...]}: the answer, then the
    other classes, best first.
    UserError for fewer than two classes.
    """

    targets = 'ordered classes'
    loss = dict(type='CornLoss')
    metrics = ('rank_mae', 'quadratic_kappa', 'rank_accuracy')
    ranks = True
    watched = 'rank_mae'
    about = 'an image classifier of ordered classes'

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        if len(self.names) < 2:
            raise UserError(
                f'the objective Ordinal has {len(self.names)} class, {", ".join(self.names)}; ranks need at '
                'least 2. Give more classes, or choose another model.objective.'
            )

        shown = self.names if len(self.names) <= SHOWN else [*self.names[: SHOWN - 1], '…', self.names[-1]]
        self.told = f'ranks, from the lowest: {" < ".join(shown)}'

    @property
    def num_outputs(self) -> int:
        return len(self.names) - 1

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The number of ranks between answer and target."""
        return ((_logs(outputs).exp() > 0.5).sum(1) - targets).abs().float()

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        above_BK = _logs(outputs).exp()
        edge_B1 = torch.ones_like(above_BK[:, :1])
        return torch.cat([edge_B1, above_BK], 1) - torch.cat([above_BK, 0 * edge_B1], 1)

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        logs_BK = _logs(outputs.double()).logsumexp(0) - math.log(len(outputs))
        steps_BK = torch.cat([logs_BK[:, :1], logs_BK.diff(dim=1)], 1)  # log P(y > k | y >= k)
        return steps_BK.exp().logit(eps=1e-12).to(outputs.dtype)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        above_NK = 1 - scores.cumsum(1)[:, :-1]
        return (above_NK > 0.5).sum(1)

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        scores_BK = self.scores(outputs.float()).cpu().numpy()
        found: list[Answer] = []
        for scores_K, answer in zip(scores_BK, self.decide(scores_BK)):
            order = np.argsort(-scores_K, kind='stable')
            order = np.concatenate([[answer], order[order != answer]])[: usual if topk is None else topk]
            found.append(dict(scores=scores_K[order].tolist(), labels=[self.names[k] for k in order]))
        return found

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The number of ranks between the target and the mean of the scores, if the answer is wrong."""
        mean_N = (scores * np.arange(scores.shape[1])).sum(1)
        return np.abs(mean_N - targets) * (self.decide(scores) != targets)

    def example_outputs(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(self.example_labels()), self.num_outputs))


def _logs(outputs: torch.Tensor) -> torch.Tensor:
    """Outputs (…, K - 1) -> log P(y > k). A product would underflow, and ONNX has no cumulative product."""
    return F.logsigmoid(outputs).cumsum(-1)
