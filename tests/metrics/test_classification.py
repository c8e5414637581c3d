"""Metrics on scores small enough to count by hand."""

import numpy as np
import pytest

from vet.engine.evaluate import compute_metrics
from vet.errors import UnknownNameError

SCORES = np.eye(6)[[0, 0, 1, 2, 2, 5]] + np.linspace(0.3, 0, 6)     # predicted 0 0 1 2 2 5; ranked below by class number
LABELS = np.array([0, 0, 0, 2, 1, 5])


@pytest.mark.parametrize('name, expected', [
    ('accuracy', 4 / 6), ('mean_per_class_accuracy', (2 / 3 + 0 + 1 + 1) / 4),
    ('macro_f1', (0.8 + 0 + 2 / 3 + 1) / 4), ('top5', 6 / 6)])
def test_values(name, expected):
    result = compute_metrics([name], SCORES, LABELS)
    assert result == {name: pytest.approx(expected)} and type(result[name]) is float


def test_top5_misses_the_sixth():
    assert compute_metrics(['top5'], SCORES, np.full(6, 5)) == {'top5': pytest.approx(1 / 6)}
    assert compute_metrics(['top5'], np.eye(3), np.array([0, 1, 2])) == {'top5': 1.0}


def test_modelscopes_name():
    assert list(compute_metrics(['vision-efficient-tuning-metric', 'top5'], SCORES, LABELS)) == ['accuracy', 'top5']
    with pytest.raises(UnknownNameError, match="unknown metric 'acc'"):
        compute_metrics(['acc'], SCORES, LABELS)
