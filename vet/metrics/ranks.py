"""Metrics of ordered classes, by scikit-learn: how many ranks the answers are away from the truth.

Each metric is a function: scores (N, K), labels (N,) -> a number. The answer is the median of the scores.
"""

import numpy as np
from sklearn import metrics

from vet.metrics.kind import Asked, of_targets
from vet.registry import METRICS

KIND = 'ordered classes'


@METRICS.register_module()
@of_targets(KIND, lower_is_better=True)
def rank_mae(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """The mean absolute error of the ranks. Less is better."""
    return float(metrics.mean_absolute_error(labels, objective.decide(scores)))


@METRICS.register_module()
@of_targets(KIND)
def quadratic_kappa(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """Cohen's kappa with quadratic weights: 1 is perfect, 0 is as good as chance.

    0 if all answers and all labels are one class.
    """
    ranks = range(len(objective.names))
    decided = objective.decide(scores)
    if len(np.union1d(labels, decided)) == 1:
        return 0.0
    return float(metrics.cohen_kappa_score(labels, decided, labels=ranks, weights='quadratic'))


@METRICS.register_module()
@of_targets(KIND)
def rank_accuracy(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """The share of images whose answer is the right class."""
    return float(metrics.accuracy_score(labels, objective.decide(scores)))
