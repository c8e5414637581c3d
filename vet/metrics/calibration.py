"""Measures how far scores are from the shares of right answers."""

import numpy as np

from vet.metrics.kind import of_targets
from vet.registry import METRICS

BINS = 15


@METRICS.register_module()
@of_targets('one class', lower_is_better=True)
def ece(scores: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error of the highest scores, with 15 bins, in 0..1. Less is better.

    Guo et al. 2017, arXiv:1706.04599, equation 3
    """
    return calibration_error(scores.max(1), scores.argmax(1) == labels)


def calibration_error(says_N: np.ndarray, is_so_N: np.ndarray, bins: int = BINS) -> float:
    """The sum over bins of n_b / N |mean of is_so - mean of says|.

    Bin b holds the scores in ((b - 1) / M, b / M]. The first bin also holds 0.
    says_N: scores in 0..1. is_so_N: whether the statement of each score is true. bins: M.
    """
    bin_N = np.clip(np.ceil(says_N * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_N, is_so_N.astype(float) - says_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(says_N))
