"""Metrics of images of one class, computed by scikit-learn.

Each metric is a function: scores (N, K), labels (N,) -> a number in 0..1, or {class: number}.
"""

import numpy as np
from sklearn import metrics

from vet.metrics.kind import Asked, of_targets
from vet.registry import METRICS

KIND = 'one class'


@METRICS.register_module(name=['accuracy', 'vision-efficient-tuning-metric'])
@of_targets(KIND)
def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose highest score belongs to their label."""
    return float(metrics.accuracy_score(labels, scores.argmax(1)))


@METRICS.register_module()
@of_targets(KIND)
def top2(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is among the two highest scores."""
    return _top(scores, labels, 2)


@METRICS.register_module()
@of_targets(KIND)
def top3(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is among the three highest scores."""
    return _top(scores, labels, 3)


@METRICS.register_module()
@of_targets(KIND)
def top5(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is among the five highest scores."""
    return _top(scores, labels, 5)


@METRICS.register_module()
@of_targets(KIND)
def top10(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is among the ten highest scores."""
    return _top(scores, labels, 10)


def _top(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    ranked = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return float((ranked == labels[:, None]).any(1).mean())


@METRICS.register_module()
@of_targets(KIND)
def accuracy_per_class(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """The accuracy of each class. Classes without any image are left out."""
    is_right = scores.argmax(1) == labels
    return {objective.names[k]: float(is_right[labels == k].mean()) for k in np.unique(labels)}


@METRICS.register_module(name=['mean_per_class_accuracy', 'balanced_accuracy'])
@of_targets(KIND)
def mean_per_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' accuracies, over the classes that are present in the labels."""
    return float(
        metrics.recall_score(
            labels, scores.argmax(1), labels=np.unique(labels), average='macro', zero_division=0
        )
    )


@METRICS.register_module()
@of_targets(KIND)
def macro_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the harmonic mean of precision and recall."""
    return float(metrics.f1_score(labels, scores.argmax(1), average='macro', zero_division=0))
