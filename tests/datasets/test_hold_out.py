from collections import Counter

import pytest

from vet.datasets.hold_out import hold_out
from vet.errors import DataError, UserError


class Labels:
    """Only labels; an item is its own index."""

    def __init__(self, counts):
        self.classes = list(map(str, range(len(counts))))
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return index, self.targets[index]


def test_stratified_and_whole():
    data = Labels([100, 50, 10])
    train, val = hold_out(data)
    assert Counter(val.targets) == {0: 10, 1: 5, 2: 1}
    assert sorted(train.indices + val.indices) == list(range(160))
    for part in (train, val):
        assert part.classes == data.classes
        assert [label for _, label in (part[i] for i in range(len(part)))] == part.targets
        assert part.indices == sorted(part.indices)


def test_same_seed_same_parts():
    data = Labels([30, 30])
    assert hold_out(data, seed=1)[1].indices == hold_out(data, seed=1)[1].indices
    assert hold_out(data, seed=1)[1].indices != hold_out(data, seed=2)[1].indices


def test_fraction():
    assert len(hold_out(Labels([20, 20]), 0.25)[1]) == 10
    for fraction in (0, 1, -0.1, 10):
        with pytest.raises(UserError, match='between 0 and 1'):
            hold_out(Labels([20]), fraction)


@pytest.mark.parametrize(
    'counts, held', [([2] * 50, 50), ([5] * 20, 20), ([2, 2], 2), ([3, 40], 4), ([2], 1)]
)
def test_small_classes_hold_out_more(counts, held):
    train, val = hold_out(Labels(counts))
    assert len(val) == held and set(train.targets) == set(range(len(counts)))


def test_a_single_image_stays_in_training():
    train, val = hold_out(Labels([1, 10, 1, 10]), 0.5)
    assert {0, 2} <= set(train.targets) and set(val.targets) == {1, 3}
    with pytest.raises(DataError, match='two images'):
        hold_out(Labels([1, 1]))
