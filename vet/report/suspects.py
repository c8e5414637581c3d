"""Finds labels that are probably wrong, by the answers of a model that has not seen the images.

A label k of an image with the log-probabilities s is explained by a mixture:

    p(k) = (1 - e) softmax(s / T)_k + e / K

The share e of labels says nothing of the image. T and e maximise the likelihood of all labels. A label is
suspect if the label comes from the second part with a probability above 1/2. Where no label is wrong, e is
near 0, and no label is suspect.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

STARTS = ((0.0, -3.0), (2.0, -3.0))  # of the search: log T, and the logit of e


@dataclass(frozen=True)
class Judged:
    """best_N: the most probable class of each image. sure_N: the probability of that class.

    wrong_N: the probability that the label is wrong.
    """

    best_N: np.ndarray
    sure_N: np.ndarray
    wrong_N: np.ndarray

    def suspects(self, labels_N: np.ndarray, sure: float = 0.0) -> list[int]:
        """The images with a suspect label, the most suspect first.

        sure: the least probability of the class that fits better.
        """
        suspect_N = (self.wrong_N > 0.5) & (self.best_N != labels_N) & (self.sure_N >= sure)
        return [int(i) for i in np.argsort(-self.wrong_N, kind='stable') if suspect_N[i]]


def judged_by(scores_NK: np.ndarray, labels_N: np.ndarray) -> Judged:
    """Judges the labels 0 … K-1 by the log-probabilities of a model that has not seen the images."""
    items = np.arange(len(labels_N))
    by_chance = 1 / scores_NK.shape[1]

    def tempered(point: np.ndarray) -> np.ndarray:
        return softmax(scores_NK / np.exp(point[0]), axis=1)

    def parts(point: np.ndarray) -> tuple[np.ndarray, float]:
        share = float(expit(point[1]))
        return (1 - share) * tempered(point)[items, labels_N], share * by_chance

    def loss(point: np.ndarray) -> float:
        right_N, wrong = parts(point)
        return -float(np.log(right_N + wrong + 1e-300).mean())

    found = min((minimize(loss, start, method='Nelder-Mead') for start in STARTS), key=lambda end: end.fun)
    right_N, wrong = parts(found.x)
    return Judged(scores_NK.argmax(1), tempered(found.x).max(1), wrong / (right_N + wrong + 1e-300))
