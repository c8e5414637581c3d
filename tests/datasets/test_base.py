import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vet.datasets.base import ImageDataset, as_label, item_of, resolve_split, targets_of
from vet.errors import DataError, UserError


class Own:
    """A dataset of the user's own, with nothing but what `ImageData` asks for."""

    classes = ['dark', 'light']

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new('L', (2, 2), 60 * index), np.int64(index // 2)


def test_items():
    data = ImageDataset(
        ['a', 'b'], [(np.full((2, 2), 9, np.uint8), np.int64(1)), (np.zeros((2, 2), np.uint8), 0)]
    )
    image, label = data[0]
    assert image.mode == 'RGB' and image.getpixel((0, 0)) == (9, 9, 9)
    assert label == 1 and type(label) is int
    assert (len(data), data.targets, data.classes) == (2, [1, 0], ['a', 'b'])
    assert pickle.loads(pickle.dumps(data)).targets == data.targets
    with pytest.raises(IndexError):
        data[2]


def test_images_are_not_opened_before_they_are_asked_for():
    data = ImageDataset(['a'], [('nowhere.png', 0)])
    with pytest.raises(DataError, match='nowhere.png'):
        data[0]


def test_no_samples_or_labels_without_a_name():
    with pytest.raises(DataError, match='no image'):
        ImageDataset(['a'], [])
    for label in (-1, 1):
        with pytest.raises(DataError, match='1 class names'):
            ImageDataset(['a'], [('x.png', label)])


def test_targets_of_a_dataset_without_targets():
    assert targets_of(Own()) == [0, 0, 1, 1]
    assert all(type(label) is int for label in targets_of(Own()))


@pytest.mark.parametrize('label', [torch.tensor([1]), np.array([1]), 1.0, '1', None])
def test_labels_that_are_no_class_numbers(label):
    with pytest.raises(UserError, match='picture has the label .* a whole number from 0 to 1'):
        as_label(label, 2, lambda: 'picture')


@pytest.mark.parametrize('label', [1, np.int64(1), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)])
def test_labels_that_are_class_numbers(label):
    number = as_label(label, 2, lambda: 'picture')
    assert number == 1 and type(number) is int


def test_targets_that_contradict_the_items():
    data = Own()
    data.targets = [0, 0, 1, 1]
    assert [item_of(data, index)[1] for index in range(4)] == data.targets
    data.targets = [0, 0]  # fewer than items: another check refuses these before a run
    assert [item_of(data, index)[1] for index in range(4)] == [0, 0, 1, 1]
    data.targets = np.array([0, 1, 1, 1])
    with pytest.raises(UserError, match='image 1 of Own has the label 0, but the `targets` .* say 1'):
        item_of(data, 1)


def test_splits():
    assert resolve_split('eval', ('train', 'test'), 'X') == ['test']
    assert resolve_split('train+val', ('train', 'val', 'test'), 'X') == ['train', 'val']
    for split in ('val', 'train+test', 'train+val', 'trian', '', None):
        with pytest.raises(UserError, match='Allowed: test, train'):
            resolve_split(split, ('train', 'test'), 'X')
