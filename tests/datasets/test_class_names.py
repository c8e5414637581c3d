"""Class names as a user gives them: the order of the labels is never guessed."""

import unicodedata

import numpy as np
import pytest
import torch

from vet.builders import class_names, names_of
from vet.datasets.base import ImageDataset, as_label, item_of, targets_of
from vet.datasets.class_names import class_list
from vet.datasets.csv import CSV
from vet.datasets.image_folder import ImageFolder
from vet.errors import DataError, UserError

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Own:
    """A user's own dataset without `targets`."""

    def __init__(self, classes=('a', 'b', 'c'), items=((IMAGE, 0),), **attributes):
        self.classes, self.items = classes, items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.mark.parametrize(
    'classes, names',
    [
        (['dog', 'cat'], ['dog', 'cat']),
        (('dog', 'cat'), ['dog', 'cat']),
        (iter(['dog', 'cat']), ['dog', 'cat']),
        (np.array(['dog', 'cat']), ['dog', 'cat']),
        ([0, 1], ['0', '1']),
        ({'dog': 1, 'cat': 0}, ['cat', 'dog']),
        ({1: 'dog', 0: 'cat'}, ['cat', 'dog']),
        ({'dog': np.int64(1), 'cat': np.int64(0)}, ['cat', 'dog']),
        ({'dog': 0}.keys(), UserError),
        (torch.tensor([3, 4]), ['3', '4']),
        ([None, 'cat'], UserError),
        ([float('nan'), 'cat'], UserError),
        ([0.0, 1.0], UserError),
        ([b'dog', b'cat'], UserError),
        ([['dog'], ['cat']], UserError),
        (['', 'cat'], UserError),
        (['\u00a0', 'cat'], UserError),
        (['cafe\u0301'], ['caf\u00e9']),
        ('imagenet-1k', 1000),
        ({'dog', 'cat'}, UserError),
        (frozenset('ab'), UserError),
        (['cat', 'dog', 'cat'], UserError),
        ([1, '1'], UserError),
        (['caf\u00e9', 'cafe\u0301'], UserError),
        ({'dog': 1, 'cat': 2}, UserError),
        ({'dog': 0, 'cat': 0}, UserError),
        ({'dog': 'x', 'cat': 'y'}, UserError),
        ({'dog': 0.0, 'cat': 1.0}, UserError),
        ({'dog': True, 'cat': False}, UserError),
        ({'dog': 1, 0: 'cat'}, UserError),
        (7, UserError),
        (None, UserError),
        ('imagenet-2k', UserError),
        ([b'\xff'.decode('utf-8', 'surrogateescape')], UserError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_class_lists(classes, names):
    if names is UserError:
        with pytest.raises(UserError):
            class_list(classes)
    elif isinstance(names, int):
        assert len(class_list(classes)) == names
    else:
        assert class_list(classes) == names


def test_a_series_counts_by_its_index():
    pandas = pytest.importorskip('pandas')
    assert class_list(pandas.Series(['dog', 'cat'])) == ['dog', 'cat']
    assert class_list(pandas.Series([1, 0], index=['dog', 'cat'])) == ['cat', 'dog']
    for wrong in (
        pandas.Series(['dog', 'cat'], index=[7, 9]),
        pandas.Series(['dog', None]),
        pandas.DataFrame(dict(names=['dog', 'cat'])),
        [pandas.NA, 'cat'],
    ):
        with pytest.raises(UserError):
            class_list(wrong)


def test_a_set_is_refused_because_it_has_no_order():
    with pytest.raises(
        UserError, match='are a set, .*, which has no order; give a list, in the order of the labels'
    ):
        class_list({'dog', 'cat'})


def test_a_name_that_is_there_twice_is_told():
    with pytest.raises(UserError, match="the class 'cat' is named 2 times among 3 classes"):
        class_list(['cat', 'dog', 'cat'])


def test_a_dict_counts_by_its_numbers_wherever_classes_are_given(tmp_path, paint, ids_of):
    for number, name in enumerate(['cat', 'dog']):
        paint(tmp_path / 'pets' / name / 'a.png', number)
    (tmp_path / 'list.csv').write_text('pets/cat/a.png,cat\npets/dog/a.png,dog\n')
    for classes in ({'dog': 0, 'cat': 1}, {0: 'dog', 1: 'cat'}, ['dog', 'cat']):
        for data in (
            ImageFolder(tmp_path, path='pets', classes=classes),
            CSV(tmp_path, file='list.csv', classes=classes),
            ImageDataset(classes, [(tmp_path / 'pets/cat/a.png', 1), (tmp_path / 'pets/dog/a.png', 0)]),
        ):
            assert data.classes == ['dog', 'cat'] and ids_of(data) == [(0, 1), (1, 0)]
        assert class_names(Own(classes)) == ['dog', 'cat']
    for classes in ({'cat', 'dog'}, ['cat', 'dog', 'cat']):
        for make in (
            lambda: ImageFolder(tmp_path, path='pets', classes=classes),  # noqa: B023
            lambda: class_names(Own(classes)),  # noqa: B023
            lambda: CSV(tmp_path, file='list.csv', classes=classes),  # noqa: B023
        ):
            with pytest.raises(UserError, match='set|2 times'):
                make()


def test_text_is_no_list_of_letters():
    with pytest.raises(UserError, match="has `classes` 'abc'; set it to a list"):
        class_names(Own('abc'))


@pytest.mark.parametrize(
    'label',
    [-1, 3, 'a', '0', 1.0, 0.5, None, np.eye(3)[1], np.array([1, 0]), [0, 1], np.float32(1), 10**20],
    ids=str,
)
def test_a_label_that_is_no_place_among_the_classes_names_its_image(label):
    own = Own(items=[(IMAGE, 0), (IMAGE, label)])
    for read in (
        lambda: item_of(own, 1),
        lambda: targets_of(own),
        lambda: targets_of(Own(items=own.items, targets=[0, label])),
        lambda: class_names(Own(items=own.items, targets=[0, label])),
    ):
        with pytest.raises(
            UserError,
            match=r'image 1 of Own has the label .*, but there are 3 classes: a label is a whole number from 0 to 2',
        ):
            read()


@pytest.mark.parametrize('label', [1, np.int64(1), np.uint8(1), np.array(1), True], ids=repr)
def test_whole_numbers_of_any_type_are_labels(label):
    assert (
        item_of(Own(items=[(IMAGE, label)]), 0) == (IMAGE, 1)
        or item_of(Own(items=[(IMAGE, label)]), 0)[1] == 1
    )
    assert type(as_label(label, 3, str)) is int


@pytest.mark.parametrize(
    'item, text',
    [
        (IMAGE, 'is a ndarray; an item is a pair'),
        ((IMAGE,), 'is a tuple of 1 parts'),
        ((IMAGE, 0, 1), 'is a tuple of 3 parts'),
        (dict(image=IMAGE, label=0), 'is a dict; an item is a pair'),
        (None, 'is a NoneType'),
        ('ab', 'is a str'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_item_is_a_pair(item, text):
    with pytest.raises(UserError, match=f'image 0 of Own {text}'):
        item_of(Own(items=[item]), 0)


@pytest.mark.parametrize(
    'error',
    [
        KeyError('x'),
        IndexError('i'),
        OSError('disk'),
        ZeroDivisionError(),
        MemoryError('no'),
        StopIteration(),
        Exception('plain'),
        RuntimeError('r'),
        UnicodeDecodeError('utf-8', b'', 0, 1, 'u'),
    ],
    ids=repr,
)
def test_whatever_an_item_raises_names_the_image(error):
    with pytest.raises(
        DataError, match=f'image 0 of Own cannot be read or transformed: {type(error).__name__}'
    ):
        item_of(Own(items=[error]), 0)


def test_a_file_is_named_too(tmp_path, paint):
    paint(tmp_path / 'a.png', 1)
    data = ImageDataset('ab', [(tmp_path / 'a.png', 1)])
    (tmp_path / 'a.png').write_bytes(b'broken')
    with pytest.raises(DataError, match=r"image 0 of ImageDataset \('.*a.png'\): cannot read .*a.png"):
        item_of(data, 0)


def test_a_name_keeps_its_composed_form(tmp_path, paint, ids_of):
    """A folder unpacked by macOS and one unpacked elsewhere have the same classes."""
    for form, split in (('NFD', 'train'), ('NFC', 'test')):
        for number, name in enumerate(['café', 'zoo']):
            paint(tmp_path / split / unicodedata.normalize(form, name) / 'a.png', number)
    train, test = (ImageFolder(tmp_path, split) for split in ('train', 'test'))
    assert train.classes == test.classes == ['caf\u00e9', 'zoo'] and ids_of(train) == ids_of(test) == [
        (0, 0),
        (1, 1),
    ]
    assert ImageFolder(tmp_path, 'train', classes=[unicodedata.normalize('NFD', 'café'), 'zoo']).targets == [
        0,
        1,
    ]


@pytest.mark.parametrize('length', [None, -1, 2.0])
def test_a_dataset_without_a_length_is_told(length):
    kind = type(
        'Stream', (), dict(classes=['a', 'b']) | (dict(__len__=lambda self: length) if length else {})
    )
    with pytest.raises(UserError, match='the dataset Stream has no length: .*Give a dataset with `__len__`'):
        names_of(kind())
