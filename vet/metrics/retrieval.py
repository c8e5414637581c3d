"""Metrics of vectors: whether the nearest images are of the same class. Each image searches among the others.

Each metric is a function: scores (N, D), which are vectors, labels (N,) -> a number in 0..1. An image whose
class has no other image searches nothing, and is left out. NaN if no image searches.
"""

import numpy as np

from vet.metrics.kind import of_targets
from vet.metrics.nearest import nearest_others, votes_of_others
from vet.registry import METRICS

KIND = 'a class of images that are alike'


@METRICS.register_module()
@of_targets(KIND)
def recall_at_1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose nearest other image is of the same class."""
    return _recall(scores, labels, 1)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_2(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the two nearest others."""
    return _recall(scores, labels, 2)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_4(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the four nearest others."""
    return _recall(scores, labels, 4)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_5(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the five nearest others."""
    return _recall(scores, labels, 5)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_8(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the eight nearest others."""
    return _recall(scores, labels, 8)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_10(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the ten nearest others."""
    return _recall(scores, labels, 10)


@METRICS.register_module()
@of_targets(KIND)
def knn_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """How often the vote of the 20 nearest others is right. `vet test --knn` lets training images vote."""
    searches_N = np.bincount(labels)[labels] > 1
    if not searches_N.any():
        return float('nan')
    voted_NK = votes_of_others(scores, labels)
    return float((voted_NK.argmax(1) == labels)[searches_N].mean())


@METRICS.register_module()
@of_targets(KIND)
def map_at_r(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over images of 1 / R sum over i = 1 … R of P(i).

    Musgrave et al. 2020, arXiv:2003.08505, equation 3

    R: the number of other images of the class. P(i): the share of the i nearest that are of the class; 0 if
    the i-th nearest is of another class.
    """
    others_N = np.bincount(labels)[labels] - 1
    if not others_N.any():
        return float('nan')
    is_hit_NR = labels[nearest_others(scores, others_N.max())[0]] == labels[:, None]
    place_R = np.arange(1, is_hit_NR.shape[1] + 1)
    is_hit_NR &= place_R <= others_N[:, None]
    precision_NR = is_hit_NR.cumsum(1) / place_R * is_hit_NR
    searches_N = others_N > 0
    return float((precision_NR.sum(1)[searches_N] / others_N[searches_N]).mean())


def _recall(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    searches_N = np.bincount(labels)[labels] > 1
    if not searches_N.any():
        return float('nan')
    is_hit_NK = labels[nearest_others(scores, k)[0]] == labels[:, None]
    return float(is_hit_NK.any(1)[searches_N].mean())
