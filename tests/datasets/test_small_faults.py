"""Values that a small fault in a reader would change, and that no other test looks at."""

import socket

import numpy as np
import pytest
import torchvision
from scipy.io import loadmat, savemat

from tests.datasets.test_published import write_bird_lists, write_dogs
from vet.datasets import image, published, web
from vet.datasets.csv import CSV
from vet.datasets.cub200 import CUB200
from vet.datasets.image import open_image
from vet.datasets.image_folder import ImageFolder
from vet.datasets.stanford_dogs import StanfordDogs
from vet.datasets.torchvision import TorchvisionDataset
from vet.errors import DataError


def test_a_class_name_of_cub_keeps_all_but_its_number(tmp_path, paint):
    write_bird_lists(
        tmp_path / 'CUB_200_2011',
        [(1, '001.St._Lucia_Parrot')],
        [(1, '001.St._Lucia_Parrot/a.jpg', 1, 1)],
        paint,
    )
    assert CUB200(tmp_path, 'train').classes == ['St._Lucia_Parrot']


@pytest.mark.parametrize('floats', [[-0.5, 0.5], [0.5, 1.5], [np.nan, 0.5]])
def test_one_float_outside_the_range_is_enough(floats):
    with pytest.raises(DataError, match='do not all lie in'):
        open_image(np.array([floats]))


def test_labels_of_which_some_are_numbers_are_names(tmp_path, paint):
    for number in range(3):
        paint(tmp_path / f'{number}.png', number)
    (tmp_path / 'list.csv').write_text('0.png,2\n1.png,dog\n2.png,10\n')
    assert CSV(tmp_path, file='list.csv').classes == ['10', '2', 'dog']


def test_a_split_without_training_images_has_classes(tmp_path, paint):
    for number, name in enumerate('ba'):
        paint(tmp_path / 'test' / name / '0.png', number)
    assert ImageFolder(tmp_path, 'test').classes == ['a', 'b']


def test_data_are_downloaded_into_a_root_that_is_not_there_yet(tmp_path, monkeypatch, paint):
    monkeypatch.setattr(StanfordDogs, 'fetch', lambda self, root: write_dogs(root / 'stanford_dogs', paint))
    root = tmp_path / 'not' / 'there' / 'yet'
    assert len(StanfordDogs(root, 'train')) == 4
    assert [path.name for path in root.iterdir()] == ['stanford_dogs']


def test_lists_of_unequal_length_are_refused(tmp_path, paint):
    write_dogs(tmp_path / 'stanford_dogs', paint)
    path = tmp_path / 'stanford_dogs' / 'train_list.mat'
    table = loadmat(path)
    savemat(path, dict(file_list=table['file_list'], labels=table['labels'][:-1]))
    with pytest.raises(DataError, match='cannot be read'):
        StanfordDogs(tmp_path, 'train')


def test_torchvision_s_downloads_have_a_limit_which_ends_with_them(monkeypatch):
    seen, read = set(), torchvision.datasets.FakeData.__getitem__
    monkeypatch.setattr(
        torchvision.datasets.FakeData,
        '__getitem__',
        lambda self, index: seen.add(socket.getdefaulttimeout()) or read(self, index),
    )
    TorchvisionDataset('.', None, name='FakeData', options=dict(size=1, image_size=(3, 4, 4)))
    assert seen == {published.NETWORK_TIMEOUT_SECONDS} and socket.getdefaulttimeout() is None


def test_the_limits_of_a_url_are_those_that_the_documentation_gives():
    assert '10 s' in open_image.__doc__ and '64 MiB' in open_image.__doc__
    assert (web.ANSWER_SECONDS, image.URL_LIMIT_SECONDS, image.URL_LIMIT_BYTES) == (10, 30, 64 * 2**20)
