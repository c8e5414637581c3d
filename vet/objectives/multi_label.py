"""The objective of images that have any number of K classes: tags, attributes, findings."""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from sklearn.metrics import precision_recall_curve

from vet.allowed import Share
from vet.core.objective import Answer, Objective, State
from vet.core.permits import NOTHING, lists, number, permits
from vet.errors import UserError
from vet.registry import OBJECTIVES
from vet.targets import as_class_set

UNCHOSEN = 0.5  # the threshold of a class for which nothing can be chosen
MOST = 100_000  # classes


@OBJECTIVES.register_module()
@permits(threshold=NOTHING | number(0, 1), thresholds=NOTHING | lists(number(0, 1), most=MOST))
class MultiLabel(Objective):
    """A set of classes for each image. The scores are sigmoid(outputs), each in 0..1.

    A target is a set of class numbers or names, or K values 0 and 1. The head has K outputs. `pipeline`
    returns {'scores': [...], 'labels': [...]} of every class whose score is at least the threshold, best
    first.
    threshold: of all classes. None: when training ends, vet chooses for each class the threshold with the
        best F1 on the validation images. Without validation images, the threshold is 0.5.
    thresholds: of each class, as vet chose them. A model folder holds them.
    """

    targets = 'a set of classes'
    loss = dict(type='BCEWithLogitsLoss')
    metrics = ('mAP', 'f1', 'subset_accuracy')
    mixes = True
    found = chosen = ('thresholds',)
    about = 'a multi-label image classifier'

    def __init__(
        self,
        names: Sequence[str],
        threshold: Share | None = None,
        thresholds: list[Annotated[float, Interval(ge=0, le=1)]] | None = None,
    ):
        super().__init__(names)
        if thresholds is not None and len(thresholds) != len(self.names):
            raise UserError(
                f'model.objective.thresholds has {len(thresholds)} numbers, but there are {len(self.names)} '
                'classes. Give one for each class, or leave thresholds out: then vet chooses them.'
            )
        self.chooses = threshold is None
        self._chosen = None if thresholds is None else [float(value) for value in thresholds]
        self.thresholds = self._chosen or [UNCHOSEN if threshold is None else float(threshold)] * len(
            self.names
        )

    def check(self, target: object, name: Callable[[], str]) -> tuple[int, ...]:
        return as_class_set(target, self.names, name)

    def counts(self, targets: Sequence[object]) -> list[int]:
        return np.asarray(targets).reshape(-1, len(self.names)).sum(0).tolist()

    def for_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return outputs, targets.float()

    def coded(self, targets: torch.Tensor) -> torch.Tensor:
        """1 for a class that an image has, and -1 for the other classes."""
        return 2 * targets.float() - 1

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The share of the K classes that are right at a score of 0.5."""
        return ((outputs > 0) == (targets > 0.5)).float().mean(1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sigmoid()

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return (scores >= np.array(self.thresholds, scores.dtype)).astype(int)

    def choose(self, scores: np.ndarray, targets: np.ndarray) -> None:
        """A class that all validation images have, or none has, keeps 0.5."""
        self._chosen = [
            _best_threshold(targets[:, k], scores[:, k])
            if 0 < targets[:, k].sum() < len(targets)
            else UNCHOSEN
            for k in range(len(self.names))
        ]
        self.thresholds = self._chosen

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        scores_BK = outputs.float().sigmoid()
        chosen_BK = self.decide(scores_BK.cpu().numpy())
        found = []
        for scores_K, chosen_K in zip(scores_BK.tolist(), chosen_BK):
            order = sorted(np.flatnonzero(chosen_K).tolist(), key=scores_K.__getitem__, reverse=True)[:topk]
            found.append(dict(scores=[scores_K[k] for k in order], labels=[self.names[k] for k in order]))
        return found

    def doubt(self, answer: Answer, threshold: float) -> Answer:
        """The labels whose scores are at least the threshold. If all labels of the answer fall out: UNSURE.

        An answer without labels says that the image has no class, and stays.
        """
        sure = [score >= threshold for score in answer['scores']]
        if not any(sure):
            return super().doubt(answer, threshold)
        return {key: list(compress(values, sure)) for key, values in answer.items()}

    def words(self, target: Any) -> str:
        return '|'.join(compress(self.names, target))

    def sureness(self, scores: np.ndarray, decided: object) -> list[float]:
        return scores[np.asarray(decided, bool)].tolist()

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """|score - target| of the worst class of the image."""
        return np.abs(scores - targets).max(1)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(0)
        classes = len(self.names)
        targets = draw.integers(0, 2, (6, classes))
        targets[:2] = [[0], [1]]  # each class is there, and is missing
        return draw.random((6, classes)), targets

    def state(self) -> State:
        return {} if self._chosen is None else dict(thresholds=self._chosen)


def _best_threshold(targets_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The score with the best F1: halfway between the lowest score that counts and the next lower score.

    Among equals: the lowest.
    """
    precision, recall, at = precision_recall_curve(targets_N, scores_N)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = float(at[int(np.argmax(f1[:-1]))])
    lower = scores_N[scores_N < best]
    return best if not len(lower) else (best + float(lower.max())) / 2
