"""Folders and lists whose labels are places in a pretrained classifier's output."""

import pytest

from vet.datasets.csv import CSV
from vet.datasets.image_folder import ImageFolder
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import DATASETS


@pytest.fixture
def pets(tmp_path, paint):
    for number, file in enumerate(
        ['train/jellyfish/a.png', 'train/mushroom/b.png', 'test/jellyfish/c.png', 'test/mushroom/d.png']
    ):
        paint(tmp_path / 'pets' / file, number)
    (tmp_path / 'list.csv').write_text('pets/train/jellyfish/a.png,one\npets/train/mushroom/b.png,two\n')
    (tmp_path / 'ids.csv').write_text('pets/train/jellyfish/a.png,107\npets/train/mushroom/b.png,947\n')
    return tmp_path


def folder(root, **options):
    return DATASETS.build(dict(type='ImageFolder', path='pets', split='train', **options), root=root)


@pytest.mark.parametrize('classes, shift', [('imagenet-1k', 0), ('imagenet-1k+background', 1)])
def test_labels_are_imagenets(pets, ids_of, classes, shift):
    data = folder(pets, classes=classes, label_map=dict(jellyfish=107 + shift, mushroom=947 + shift))
    assert ids_of(data) == [(0, 107 + shift), (1, 947 + shift)]
    assert len(data.classes) == len(set(data.classes)) == 1000 + shift
    assert [data.classes[label] for label in data.targets] == ['jellyfish', 'mushroom']
    assert data.classes[shift] == 'tench' and data.classes[0] == ('background' if shift else 'tench')
    assert ids_of(folder(pets, classes=classes)) == ids_of(data)  # by the folders' names


def test_labels_are_places_in_a_list_of_ones_own(pets, ids_of):
    data = folder(pets, classes=['a', 'b', 'c'], label_map=dict(jellyfish=2, mushroom=2))
    assert ids_of(data) == [(0, 2), (1, 2)] and data.classes == ['a', 'b', 'c']
    assert ids_of(folder(pets, classes=['mushroom', 'x', 'jellyfish'])) == [(0, 2), (1, 0)]


@pytest.mark.parametrize(
    'options, error, text',
    [
        (
            dict(classes='imagenet-1k', label_map=dict(jellyfish=107)),
            DataError,
            'mushroom: no place among the 1000 classes',
        ),
        (dict(classes=['jellyfish', 'x']), DataError, 'mushroom: no place among the 2 classes'),
        (
            dict(classes='imagenet-1k', label_map=dict(jellyfish=107, mushroom=1000)),
            UserError,
            r"has \{'mushroom': 1000\}.*0 … 999",
        ),
        (
            dict(classes='imagenet-1k', label_map=dict(jellyfish=-1, mushroom=9)),
            UserError,
            r"has \{'jellyfish': -1\}",
        ),
        (
            dict(classes='imagenet-1k', label_map=dict(jellyfish='107', mushroom=9)),
            UserError,
            r"label_map is \{'jellyfish': '107', .* a whole number, but '107' is not",
        ),
        (
            dict(label_map=dict(jellyfish=0, mushroom=1)),
            UserError,
            r"label_map is .* list of classes is missing.*'imagenet-1k'",
        ),
        (
            dict(classes='imagenet-2k'),
            UnknownNameError,
            "list of classes 'imagenet-2k'. Did you mean 'imagenet-1k'",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(pets, options, error, text):
    with pytest.raises(error, match=text):
        folder(pets, **options)


def test_a_list_takes_them_too(pets):
    mapped = CSV(pets, file='list.csv', classes='imagenet-1k', label_map=dict(one=107, two=947))
    assert mapped.targets == [107, 947] and len(mapped.classes) == 1000
    assert CSV(pets, file='ids.csv', classes='imagenet-1k').targets == [107, 947]
    with pytest.raises(DataError, match='two: no place'):
        CSV(pets, file='list.csv', classes='imagenet-1k', label_map=dict(one=107))


def test_an_empty_folder_is_named(pets):
    (pets / 'pets/train/tench').mkdir()
    with pytest.raises(DataError, match='class folder .*tench.* holds no image'):
        ImageFolder(pets, 'train', 'pets', classes='imagenet-1k')
