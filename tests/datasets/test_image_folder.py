import shutil

import pytest

from vet.datasets.image_folder import ImageFolder
from vet.errors import DataError, DataWarning, UserError
from vet.registry import DATASETS


@pytest.fixture
def flat(tmp_path, paint):
    for number, file in enumerate(['cat/b.png', 'cat/deep/er.jpg', 'dog/a.JPEG', 'ant/x.webp']):
        paint(tmp_path / 'pets' / file, number)
    (tmp_path / 'pets/cat/notes.txt').write_text('not an image')
    (tmp_path / 'pets/cat/._b.png').write_text('not an image')
    (tmp_path / 'pets/.ipynb_checkpoints').mkdir()
    return tmp_path


@pytest.fixture
def split(tmp_path, paint):
    files = [
        'train/cat/a.png',
        'train/dog/b.png',
        'val/cat/c.png',
        'val/dog/d.png',
        'test/cat/e.png',
        'test/dog/f.png',
    ]
    for number, file in enumerate(files):
        paint(tmp_path / 'pets' / file, number)
    return tmp_path


def test_flat(flat, ids_of):
    data = DATASETS.build(dict(type='ImageFolder', path='pets'), root=flat)
    assert data.classes == ['ant', 'cat', 'dog']
    assert ids_of(data) == [(3, 0), (0, 1), (1, 1), (2, 2)]
    assert ids_of(ImageFolder(path=flat / 'pets')) == ids_of(data) == ids_of(ImageFolder(flat / 'pets'))
    with pytest.raises(UserError, match='no split folders'):
        ImageFolder(flat, 'train', 'pets')


def test_splits(split, ids_of):
    assert ids_of(ImageFolder(split, 'train', 'pets')) == [(0, 0), (1, 1)]
    assert ids_of(ImageFolder(split, 'train+val', 'pets')) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert ids_of(ImageFolder(split, 'eval', 'pets')) == [(4, 0), (5, 1)]
    with pytest.raises(UserError, match='split folders train, val, test'):
        ImageFolder(split, path='pets')


def test_one_split_folder_alone_is_no_class(split, paint):
    for name in ('val', 'test'):
        shutil.rmtree(split / 'pets' / name)
    with pytest.raises(UserError, match='split folders train: choose one by split=…, such as split="train"'):
        ImageFolder(split, path='pets')
    paint(split / 'pets/car/a.png', 9)  # beside a class, `train` is a class too
    paint(split / 'pets/train/b.png', 9)
    assert ImageFolder(split, path='pets').classes == ['car', 'train']


def test_a_missing_split_lists_those_there(split):
    shutil.rmtree(split / 'pets/val')
    with pytest.raises(UserError, match='Allowed: test, train'):
        ImageFolder(split, 'val', 'pets')


def test_other_classes_than_in_training(split, paint):
    paint(split / 'pets/test/cow/g.png', 9)
    with pytest.raises(DataError, match=r"too many: \['cow'\]"):
        ImageFolder(split, 'test', 'pets')
    paint(split / 'pets/train/ant/h.png', 9)
    with pytest.raises(DataError, match=r"missing: \['ant'\]"):
        ImageFolder(split, 'val', 'pets')


def test_empty(flat):
    (flat / 'pets/bee').mkdir()
    with pytest.raises(DataError, match='class folder .*bee'):
        ImageFolder(flat, path='pets')
    (flat / 'nothing').mkdir()
    with pytest.raises(DataError, match='no class folders'):
        ImageFolder(flat, path='nothing')
    with pytest.raises(DataError, match='nowhere'):
        ImageFolder(flat, path='nowhere')


def test_real(real_data):
    data = ImageFolder(real_data, 'test', 'seed-images/jellyfish-mushroom')
    assert (len(data), len(data.classes), data[0][0].size) == (16, 2, (64, 64))


@pytest.mark.parametrize('place', ['pets', 'pets/train'])
def test_an_image_beside_the_class_folders_is_told(tmp_path, paint, place):
    for number, name in enumerate(('cat/0.png', 'dog/0.png', 'lost.png')):
        paint(tmp_path / place / name, number)
    with pytest.warns(DataWarning, match='1 x image beside the class folders, .*lost.png'):
        assert len(ImageFolder(tmp_path / place)) == 2


def test_a_split_beside_a_folder_of_another_name_is_no_class(tmp_path, paint):
    for number, name in enumerate(('train/cat/0.png', 'train/dog/0.png', 'val_images/cat/0.png')):
        paint(tmp_path / name, number)
    with pytest.raises(UserError, match='the split folders train, and beside them val_images: choose one'):
        ImageFolder(tmp_path)
    assert ImageFolder(tmp_path, 'train').classes == ['cat', 'dog']


def test_a_class_may_be_called_train(tmp_path, paint):
    for number, name in enumerate(('train/0.png', 'train/night/1.png', 'bus/0.png')):
        paint(tmp_path / name, number)
    assert ImageFolder(tmp_path).classes == ['bus', 'train']


def test_folders_that_look_like_one_class_are_told(tmp_path, paint):
    for number, name in enumerate(('Cat', 'cat ')):
        paint(tmp_path / name / '0.png', number)
    with pytest.warns(DataWarning, match="'Cat' and 'cat ' differ only in case or spaces"):
        assert len(ImageFolder(tmp_path).classes) == 2
