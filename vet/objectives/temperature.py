"""Temperature scaling: divides outputs by one number, so that scores say how often answers are right.

Guo et al. 2017, arXiv:1706.04599
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from vet.metrics.calibration import calibration_error

RANGE = (math.log(0.01), math.log(100.0))  # of log T


def chosen_temperature(outputs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, dict[str, list[float]]]:
    """The T with the least mean negative log-likelihood of softmax(outputs / T).

    1 if this T would make the calibration error worse.
    Also {'nll': [before, after], 'ece': [before, after]}.
    """
    outputs_NK = outputs_NK.astype(np.float64)

    def likelihood(log_t: float) -> float:
        return _nll(outputs_NK / math.exp(log_t), labels_N)

    found = math.exp(minimize_scalar(likelihood, bounds=RANGE, method='bounded').x)
    before, after = _errors(outputs_NK, labels_N), _errors(outputs_NK / found, labels_N)
    if any(new > old for old, new in zip(before, after)):
        found = 1.0
        after = before
    return found, {name: list(pair) for name, pair in zip(('nll', 'ece'), zip(before, after))}


def _nll(outputs_NK: np.ndarray, labels_N: np.ndarray) -> float:
    logs_NK = log_softmax(outputs_NK, axis=1)
    return float(-logs_NK[np.arange(len(labels_N)), labels_N].mean())


def _errors(outputs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    scores_NK = np.exp(log_softmax(outputs_NK, axis=1))
    is_right_N = scores_NK.argmax(1) == labels_N
    return _nll(outputs_NK, labels_N), calibration_error(scores_NK.max(1), is_right_N)
