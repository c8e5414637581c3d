"""FewShot: how many images of each class, which ones, and what is refused."""

from collections import Counter

import numpy as np
import pytest

from vet.datasets.base import ImageDataset
from vet.datasets.digits import Digits
from vet.errors import DataError, UserError
from vet.registry import DATASETS


def few(shots, seed=0, **changes):
    entry = dict(type='Digits', split='train', digits=[5, 6, 7]) | changes
    return DATASETS.build(dict(type='FewShot', dataset=entry, shots=shots, seed=seed))


@pytest.mark.parametrize('shots', [1, 4, 16])
def test_each_class_has_as_many_images(shots):
    dataset = few(shots)
    assert Counter(dataset.targets) == {0: shots, 1: shots, 2: shots}
    assert dataset.classes == Digits(split='train', digits=[5, 6, 7]).classes
    assert [dataset[index][1] for index in range(len(dataset))] == dataset.targets


def test_more_shots_hold_the_images_of_fewer_and_a_seed_draws_others():
    assert set(few(2).indices) < set(few(8).indices)
    assert few(8).indices == few(8).indices == sorted(few(8).indices)
    assert set(few(8).indices) != set(few(8, seed=1).indices)


def test_a_class_with_too_few_images_is_named():
    images = [np.zeros((4, 4, 3), np.uint8)] * 3
    dataset = ImageDataset(['ant', 'bee'], zip(images, (0, 0, 1)))
    with pytest.raises(
        DataError, match="shots is 2, but the class 'bee' has only 1 images; give fewer shots"
    ):
        DATASETS.build(dict(type='FewShot', dataset=dataset, shots=2))


def test_images_of_several_classes_are_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    dataset = ImageDataset(['ant', 'bee'], [(image, [0, 1])], objective=dict(type='MultiLabel'))
    with pytest.raises(UserError, match='allowed: a dataset with one class for each image'):
        DATASETS.build(dict(type='FewShot', dataset=dataset, shots=1))
