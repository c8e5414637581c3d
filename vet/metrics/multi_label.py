"""Metrics of images of several classes, computed by scikit-learn.

Each metric is a function: scores (N, K) in 0..1, labels (N, K) of 0 and 1 -> a number in 0..1, or {class:
number}. A class is present with a score of at least the objective's threshold.
"""

import numpy as np
from sklearn import metrics

from vet.metrics.kind import Asked, of_targets
from vet.registry import METRICS

KIND = 'a set of classes'


@METRICS.register_module(name=['mAP', 'mean_average_precision'])
@of_targets(KIND)
def mAP(scores: np.ndarray, labels: np.ndarray) -> float:  # noqa: N802 - the name in papers
    """The mean over classes of the average precision. Classes that no image has are left out.

    NaN if no image has any class.
    """
    found = _average_precisions(scores, labels)
    return float(np.mean(list(found.values()))) if found else float('nan')


@METRICS.register_module()
@of_targets(KIND)
def average_precision(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The average precision of each class. Classes that no image has are left out."""
    return {objective.names[k]: value for k, value in _average_precisions(scores, labels).items()}


@METRICS.register_module()
@of_targets(KIND)
def f1(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """The mean over classes of the harmonic mean of precision and recall, at the thresholds."""
    return float(np.mean(list(f1_per_class(scores, labels, objective).values())))


@METRICS.register_module()
@of_targets(KIND)
def micro_f1(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """The harmonic mean of precision and recall over all images and classes, at the thresholds."""
    return float(metrics.f1_score(labels.ravel(), objective.decide(scores).ravel(), zero_division=0))


@METRICS.register_module()
@of_targets(KIND)
def f1_per_class(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The harmonic mean of precision and recall of each class, at the thresholds."""
    decided = objective.decide(scores)
    return {
        name: float(metrics.f1_score(labels[:, k], decided[:, k], zero_division=0))
        for k, name in enumerate(objective.names)
    }


@METRICS.register_module()
@of_targets(KIND)
def subset_accuracy(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> float:
    """The share of images for which every class is right, at the thresholds."""
    return float((objective.decide(scores) == labels).all(1).mean())


def _average_precisions(scores: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    present = np.flatnonzero(labels.any(0)).tolist()
    return {k: float(metrics.average_precision_score(labels[:, k], scores[:, k])) for k in present}
