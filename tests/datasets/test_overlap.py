"""Splits that share images are refused before anything is trained."""

import os

import numpy as np
import pytest
from PIL import Image

from vet.builders import build_datasets
from vet.config import read_settings
from vet.datasets.base import ImageDataset
from vet.datasets.csv import CSV
from vet.datasets.digits import Digits
from vet.datasets.hold_out import hold_out
from vet.datasets.image_folder import ImageFolder
from vet.datasets.multitask import MultiTask
from vet.datasets.overlap import refuse_overlaps
from vet.errors import UserError


@pytest.fixture
def pets(tmp_path, paint):
    number = 0
    for split in ('train', 'val', 'test'):
        for name in ('cat', 'dog'):
            for file in 'ab':
                paint(tmp_path / 'pets' / split / name / f'{split}-{file}.png', number)
                number += 1
    return tmp_path


def build(given, **evaluation):
    settings = read_settings(
        dict(model=dict(backbone=dict(type='DigitsViT')), dataset={}, evaluation=evaluation)
    )
    return build_datasets(settings, **given)


def folder(pets, split):
    return ImageFolder(pets, split, 'pets')


def test_train_and_val_is_no_training_set_beside_val(pets):
    with pytest.raises(
        UserError,
        match=r"dataset.train and dataset.val share 4 images, such as '.*val-a.png': the best epoch would be chosen by "
        r'images that the model is trained on.*leave dataset.val out',
    ):
        build(dict(train=folder(pets, 'train+val'), val=folder(pets, 'val')), select='best')


def test_all_splits_apart_are_taken(pets):
    data = build({split: folder(pets, split) for split in ('train', 'val', 'test')}, select='best')
    assert [len(data[split]) for split in ('train', 'val', 'test')] == [4, 4, 4]
    held = build(dict(train=folder(pets, 'train+val'), test=folder(pets, 'test')), select='best', holdout=0.5)
    assert len(held['train']) + len(held['val']) == 8


@pytest.mark.parametrize('one, other', [('train', 'val'), ('train', 'test'), ('val', 'test')])
def test_the_same_images_twice(pets, one, other):
    given = dict(train=folder(pets, 'train'), val=folder(pets, 'val'), test=folder(pets, 'test'))
    with pytest.raises(UserError, match=f'dataset.{one} and dataset.{other} share 4 images'):
        build(given | {other: given[one]}, select='best')


def test_val_may_be_test_where_nothing_is_chosen_by_it(pets):
    assert (
        build(dict(train=folder(pets, 'train'), val=folder(pets, 'test'), test=folder(pets, 'test')))['val']
        is not None
    )


def test_roads_to_the_same_files(pets, tmp_path):
    """A list, a relative path and a link lead to the images of a folder."""
    os.symlink(pets / 'pets/test', tmp_path / 'linked')
    for target in (pets / 'linked', pets / 'pets/../pets/test'):
        (tmp_path / 'list.csv').write_text(
            f'{target}/cat/test-a.png,cat\n{pets}/pets/val/dog/val-a.png,dog\n'
        )
        with pytest.raises(UserError, match='dataset.train and dataset.test share 1 images'):
            build(dict(train=CSV(tmp_path, file='list.csv'), test=folder(pets, 'test')))


def test_images_in_memory(pets):
    with pytest.raises(UserError, match='share 1,201 images, such as images in memory'):
        build(dict(train=Digits(), test=Digits()))
    assert build(dict(train=Digits(), test=Digits(split='test')))['test'] is not None
    pictures = [np.full((2, 2), i, np.uint8) for i in range(8)]
    assert (
        build(
            dict(
                train=ImageDataset(
                    'ab', [(image, 0) for image in pictures[:5]]
                ),  # one picture is there twice, as in CIFAR
                test=ImageDataset('ab', [(image, 0) for image in pictures[4:]]),
            )
        )['test']
        is not None
    )


def test_parts_of_one_dataset(pets):
    whole = folder(pets, 'train')
    first, second = hold_out(whole, 0.5)
    assert build(dict(train=first, val=second))['val'] is second
    with pytest.raises(UserError, match='share 2 images'):
        build(dict(train=whole, val=second))


def test_a_dataset_of_ones_own(pets):
    class Own:
        classes = ('a', 'b')

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return np.zeros((2, 2), np.uint8), 0

    own = Own()
    with pytest.raises(UserError, match='share 3 images, such as number 0 of Own'):
        build(dict(train=own, test=own))
    assert build(dict(train=own, test=Own()))['test'] is not None


def test_tasks_are_compared_one_by_one(pets):
    train, test = folder(pets, 'train'), folder(pets, 'test')
    assert (
        build(dict(train=MultiTask(dict(a=train, b=test)), test=MultiTask(dict(a=test, b=train))))['test']
        is not None
    )
    with pytest.raises(UserError, match='share 4 images'):
        build(dict(train=MultiTask(dict(a=train, b=test)), test=MultiTask(dict(a=test, b=test))))


def test_a_link_to_a_training_image_is_the_training_image(tmp_path):
    for split in ('train', 'test'):
        (tmp_path / split / 'a').mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(tmp_path / 'train/a/x.png')
    (tmp_path / 'test/a/y.png').symlink_to(tmp_path / 'train/a/x.png')
    data = {split: ImageFolder(tmp_path, split, path='.') for split in ('train', 'test')}
    with pytest.raises(UserError):
        refuse_overlaps(data, False)
