"""The calibration error and the area under the ROC curve, counted by hand."""

import numpy as np
import pytest

from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics
from vet.metrics.calibration import calibration_error

SCORES = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
LABELS = np.array([0, 1, 0, 2])


def test_the_gap_of_each_bin_counts_by_its_images():
    says, is_so = np.array([0.9, 0.95, 0.3, 0.35]), np.array([True, False, False, False])
    # with two bins, the means are 0.925 against 1 / 2, and 0.325 against 0
    assert calibration_error(says, is_so, bins=2) == pytest.approx((0.425 + 0.325) / 2)


def test_scores_on_the_edges_of_bins():
    says = np.array([0.0, 1.0, 0.5])
    assert calibration_error(says, np.array([False, True, True]), bins=2) == pytest.approx(0.5 / 3)


def test_sure_answers_that_are_right_have_no_error():
    assert compute_metrics(['ece'], np.eye(3), np.arange(3)) == {'ece': 0}
    assert compute_metrics(['ece'], np.eye(3), np.array([1, 2, 0])) == {'ece': 1}


def test_the_mean_area_of_the_classes():
    # class 0: 3 of 4 pairs are in order, one of them half; classes 1 and 2: all pairs
    found = compute_metrics(['auroc'], SCORES, LABELS)['auroc']
    assert found == pytest.approx((0.875 + 1 + 1) / 3)


def test_a_class_without_a_curve_is_left_out():
    two = compute_metrics(['auroc'], SCORES[:3], LABELS[:3])['auroc']
    assert two == pytest.approx((0.75 + 1) / 2)
    assert np.isnan(compute_metrics(['auroc'], SCORES[:1], LABELS[:1])['auroc'])


def test_sets_of_classes_have_an_area_too():
    tags = build_objective(dict(type='MultiLabel'), ['a', 'b', 'c'])
    found = compute_metrics(['auroc'], SCORES, np.eye(3, dtype=int)[LABELS], tags)
    assert found == compute_metrics(['auroc'], SCORES, LABELS)
