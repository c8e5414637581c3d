"""Metrics of numbers, computed by scikit-learn, in the user's units.

Each metric is a function: scores (N, T), which are the model's numbers, labels (N, T) -> a number, which is
the mean over the T numbers of an image; or {name: number}.
"""

import numpy as np
from sklearn import metrics

from vet.metrics.kind import Asked, of_targets
from vet.registry import METRICS

KIND = 'numbers'


@METRICS.register_module()
@of_targets(KIND, lower_is_better=True)
def mae(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean absolute error. Less is better."""
    return float(metrics.mean_absolute_error(labels, scores))


@METRICS.register_module()
@of_targets(KIND, lower_is_better=True)
def rmse(scores: np.ndarray, labels: np.ndarray) -> float:
    """The root of the mean squared error. Less is better."""
    return float(metrics.root_mean_squared_error(labels, scores))


@METRICS.register_module()
@of_targets(KIND)
def r2(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of the variance that the model explains: 1 is perfect, 0 is as good as the mean."""
    return float(metrics.r2_score(labels, scores))


@METRICS.register_module()
@of_targets(KIND, lower_is_better=True)
def mae_per_target(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The mean absolute error of each number. Less is better."""
    return _named(metrics.mean_absolute_error(labels, scores, multioutput='raw_values'), objective)


@METRICS.register_module()
@of_targets(KIND, lower_is_better=True)
def rmse_per_target(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The root of the mean squared error of each number. Less is better."""
    return _named(metrics.root_mean_squared_error(labels, scores, multioutput='raw_values'), objective)


@METRICS.register_module()
@of_targets(KIND)
def r2_per_target(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The share of the variance of each number that the model explains."""
    return _named(metrics.r2_score(labels, scores, multioutput='raw_values'), objective)


def _named(values: np.ndarray, objective: Asked) -> dict[str, float]:
    return dict(zip(objective.names, values.tolist()))
