"""Metrics of vectors: whether the nearest images are of the same class. Each image searches among the others.

Each metric is a function: scores (N, D), which are vectors, labels (N,) -> a number in 0..1. An image whose
class has no other image searches nothing, and is left out. NaN if no image searches.
"""

import numpy as np

from vet.metrics.kind import of_targets
from vet.metrics.nearest import others_by_nearness
from vet.registry import METRICS

KIND = 'a class of images that are alike'


@METRICS.register_module()
@of_targets(KIND)
def recall_at_1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose nearest other image is of the same class."""
    return _recall(scores, labels, 1)


@METRICS.register_module()
@of_targets(KIND)
def recall_at_5(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with an image of the same class among the five nearest others."""
    return _recall(scores, labels, 5)


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
    is_hit_NR = labels[others_by_nearness(scores, others_N.max())] == labels[:, None]
    place_R = np.arange(1, is_hit_NR.shape[1] + 1)
    is_hit_NR &= place_R <= others_N[:, None]
    precision_NR = is_hit_NR.cumsum(1) / place_R * is_hit_NR
    searches_N = others_N > 0
    return float((precision_NR.sum(1)[searches_N] / others_N[searches_N]).mean())


def _recall(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    searches_N = np.bincount(labels)[labels] > 1
    if not searches_N.any():
        return float('nan')
    is_hit_NK = labels[others_by_nearness(scores, k)] == labels[:, None]
    return float(is_hit_NK.any(1)[searches_N].mean())
