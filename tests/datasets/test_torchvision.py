import json

import numpy as np
import pytest
import torch
from scipy.io import savemat

from vet.datasets import published
from vet.datasets.torchvision import TorchvisionDataset
from vet.errors import DataError, UserError
from vet.registry import DATASETS


@pytest.fixture
def food(tmp_path, paint):
    for number, file in enumerate(['cake/1', 'cake/2', 'pie/3', 'pie/4']):
        paint(tmp_path / 'food-101/images' / f'{file}.jpg', number)
    (tmp_path / 'food-101/meta').mkdir()
    (tmp_path / 'food-101/meta/train.json').write_text(json.dumps({'pie': ['pie/3'], 'cake': ['cake/1']}))
    (tmp_path / 'food-101/meta/test.json').write_text(json.dumps({'pie': ['pie/4'], 'cake': ['cake/2']}))
    return tmp_path


def test_split_argument(food, ids_of):
    train = DATASETS.build(dict(type='torchvision', name='Food101', split='train'), root=food)
    assert ids_of(train) == [(2, 1), (0, 0)] and train.classes == ['cake', 'pie']
    assert ids_of(TorchvisionDataset(food, 'eval', name='Food101')) == [(3, 1), (1, 0)]
    with pytest.raises(UserError, match="refuses split='val'.*train"):
        TorchvisionDataset(food, 'val', name='Food101')


def test_spellings(tmp_path, ids_of, paint):
    for number, split in enumerate(('train', 'valid', 'test')):
        for label in range(2):
            paint(tmp_path / 'country211' / split / f'C{label}' / 'x.png', 2 * number + label)
    for split, ids in {'train': [0, 1], 'val': [2, 3], 'test': [4, 5], 'train+val': [0, 1, 2, 3]}.items():
        data = TorchvisionDataset(tmp_path, split, name='Country211')
        assert [number for number, _ in ids_of(data)] == ids
        assert data.targets == [0, 1] * (len(ids) // 2) and data.classes == ['C0', 'C1']


def test_train_argument_and_arrays(tmp_path, ids_of):
    raw = tmp_path / 'MNIST/raw'
    raw.mkdir(parents=True)
    for part, numbers in {'train': [4, 9], 't10k': [7]}.items():
        images = np.repeat(np.array(numbers, np.uint8)[:, None] * 4, 784, 1)
        header = b''.join(value.to_bytes(4, 'big') for value in (0x803, len(numbers), 28, 28))
        (raw / f'{part}-images-idx3-ubyte').write_bytes(header + images.tobytes())
        header = b''.join(value.to_bytes(4, 'big') for value in (0x801, len(numbers)))
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(header + bytes(numbers))
    assert ids_of(TorchvisionDataset(tmp_path, 'train', name='MNIST')) == [(4, 4), (9, 9)]
    test = TorchvisionDataset(tmp_path, 'test', name='MNIST')
    assert ids_of(test) == [(7, 7)] and test.classes[7] == '7 - seven' and test[0][0].mode == 'RGB'


def test_without_class_names(tmp_path, monkeypatch, ids_of):
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, 'split_list', {'extra': ['', 'extra_32x32.mat', None]})
    savemat(
        tmp_path / 'extra_32x32.mat', {'X': np.full((32, 32, 3, 2), 12, np.uint8), 'y': np.array([[10], [3]])}
    )
    data = TorchvisionDataset(tmp_path, 'extra', name='SVHN')
    assert ids_of(data) == [(3, 0), (3, 3)] and data.classes == ['0', '1', '2', '3']


def test_without_splits(tmp_path, paint):
    paint(tmp_path / 'eurosat/2750/Forest/1.jpg', 1)
    assert TorchvisionDataset(tmp_path, None, name='EuroSAT').classes == ['Forest']
    with pytest.raises(UserError, match='split=None'):
        TorchvisionDataset(tmp_path, 'train', name='EuroSAT')
    with pytest.raises(UserError, match='several splits'):
        TorchvisionDataset(tmp_path, None, name='Food101')


def test_options():
    data = TorchvisionDataset(
        '.', None, name='FakeData', options=dict(size=5, image_size=(3, 4, 4), num_classes=3)
    )
    assert (
        len(data) == 5
        and data[0][0].size == (4, 4)
        and data.targets == [int(data._data[i][1]) for i in range(5)]
    )
    with pytest.raises(UserError, match='option of torchvision.datasets.FakeData .siez.*size'):
        TorchvisionDataset('.', None, name='FakeData', options=dict(siez=5))
    with pytest.raises(UserError, match='split'):
        TorchvisionDataset('.', 'train', name='EMNIST')


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Did you mean 'Food101'"):
        TorchvisionDataset(tmp_path, name='Food10')
    with pytest.raises(UserError, match='no image classification'):
        monkeypatch.setattr(
            'torchvision.datasets.FakeData.__getitem__', lambda self, index: (1, torch.zeros(40))
        )
        TorchvisionDataset(tmp_path, None, name='FakeData')
    monkeypatch.setattr(published, 'NETWORK_TIMEOUT_SECONDS', 1)
    with pytest.raises(DataError, match='Food101 .*--data-root'):
        TorchvisionDataset(tmp_path, name='Food101', download=False)


# Sets of classes --------------------------------------------------------------------------------------------

OBJECT = '<object><name>{}</name><difficult>{}</difficult></object>'


@pytest.fixture
def faces(tmp_path, paint, monkeypatch):
    """Six images in CelebA's layout, with three of the 40 attributes."""
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, '_check_integrity', lambda self: True)  # torchvision knows the real lists
    home = tmp_path / 'celeba'
    files = [f'{number:06d}.jpg' for number in range(1, 7)]
    for number, file in enumerate(files):
        paint(home / 'img_align_celeba' / file, number)
    lines = {
        'list_eval_partition.txt': ['', [' 0', ' 0', ' 1', ' 1', ' 2', ' 2']],
        'list_attr_celeba.txt': [
            '6\nBald Smiling Young \n',
            [' -1  1  1', ' -1 -1 -1', '  1 -1 -1', ' 1 1 1', ' 1 -1 1', ' -1 -1 1'],
        ],
        'identity_CelebA.txt': ['', [' 1', ' 0'] * 3],
        'list_bbox_celeba.txt': ['6\nx_1 y_1\n', [' 1 1'] * 6],
        'list_landmarks_align_celeba.txt': ['6\nlefteye_x lefteye_y\n', [' 1 1'] * 6],
    }
    for name, (header, rows) in lines.items():
        (home / name).write_text(header + ''.join(f'{file}{row}\n' for file, row in zip(files, rows)))
    return tmp_path


def test_celeba_has_sets_of_attributes(faces, ids_of):
    data = TorchvisionDataset(faces, 'train', name='CelebA')
    assert data.classes == ['Bald', 'Smiling', 'Young'] and data.objective == dict(type='MultiLabel')
    assert ids_of(data) == [(0, frozenset({1, 2})), (1, frozenset())]
    assert ids_of(TorchvisionDataset(faces, 'val', name='CelebA')) == [
        (2, frozenset({0})),
        (3, frozenset({0, 1, 2})),
    ]
    assert ids_of(TorchvisionDataset(faces, 'test', name='CelebA')) == [
        (4, frozenset({0, 2})),
        (5, frozenset({2})),
    ]
    people = TorchvisionDataset(faces, 'train', name='CelebA', options=dict(target_type='identity'))
    assert people.targets == [1, 0] and not hasattr(people, 'objective')


def test_the_objects_of_voc_are_a_set(tmp_path, ids_of, paint):
    home = tmp_path / 'VOCdevkit/VOC2012'
    (home / 'Annotations').mkdir(parents=True)
    objects = [[('person', 0), ('person', 0), ('dog', 0)], [('cat', 1), ('car', 0)], [('cat', 1)]]
    for number, named in enumerate(objects):
        paint(home / f'JPEGImages/{number}.jpg', number)
        text = ''.join(OBJECT.format(*each) for each in named)
        (home / f'Annotations/{number}.xml').write_text(f'<annotation>{text}</annotation>')
    (home / 'ImageSets/Main').mkdir(parents=True)
    (home / 'ImageSets/Main/train.txt').write_text('0\n1\n2\n')
    data = TorchvisionDataset(tmp_path, 'train', name='VOCDetection', download=False)
    assert len(data.classes) == 20 and data.objective == dict(type='MultiLabel')
    dog, person, car = map(data.classes.index, ('dog', 'person', 'car'))
    assert ids_of(data) == [(0, frozenset({dog, person})), (1, frozenset({car})), (2, frozenset())]


def test_a_dataset_of_masks_names_the_other_type(tmp_path, paint):
    home = tmp_path / 'VOCdevkit/VOC2012'
    for file in ('JPEGImages/0.jpg', 'SegmentationClass/0.png'):
        paint(home / file, 0)
    (home / 'ImageSets/Segmentation').mkdir(parents=True)
    (home / 'ImageSets/Segmentation/train.txt').write_text('0\n')
    with pytest.raises(UserError, match='If the items have masks, use type="torchvision-masks"'):
        TorchvisionDataset(tmp_path, 'train', name='VOCSegmentation', download=False)
