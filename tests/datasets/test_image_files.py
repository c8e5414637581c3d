"""Which files of a folder count as images, for training and for prediction alike, and what is said of
the others.
"""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, features

from vet.cli.predict import list_images
from vet.datasets import image_files as module
from vet.datasets.image import open_image
from vet.datasets.image_files import extensions, find_images
from vet.datasets.image_folder import ImageFolder
from vet.errors import DataError, DataWarning, UserError


@pytest.fixture
def pets(tmp_path, paint):
    for number, file in enumerate(['cat/a.png', 'cat/deep/b.png', 'dog/c.png']):
        paint(tmp_path / 'pets' / file, number)
    return tmp_path / 'pets'


def names(folder):
    return [os.path.relpath(path, folder) for path in find_images(folder).images]


SAVED = [
    '.bmp',
    '.dib',
    '.gif',
    '.jfif',
    '.jpe',
    '.jpeg',
    '.jpg',
    '.pbm',
    '.pcx',
    '.pgm',
    '.png',
    '.apng',
    '.pnm',
    '.ppm',
    '.qoi',
    '.tga',
    '.tif',
    '.tiff',
    '.ico',
    '.dds',
    '.sgi',
    '.webp',
    '.avif',
    '.jp2',
    '.j2k',
    '.mpo',
    '.PNG',
    '.JFIF',
    '.Jpeg',
]


@pytest.mark.parametrize('suffix', SAVED)
def test_every_format_that_pillow_decodes_is_taken(pets, suffix):
    form = Image.registered_extensions()[suffix.lower()]
    if not features.check(module.NEEDS.get(form, 'jpg')):
        pytest.skip(f'this Pillow was built without {form}')
    path = pets / 'dog' / f'x{suffix}'
    Image.new('RGB', (32, 32), (200, 100, 50)).convert('1' if suffix == '.pbm' else 'RGB').save(path, form)
    assert str(path) in list_images(str(pets)) and str(path) in [
        source for source, _ in ImageFolder(path=pets).samples
    ]
    assert open_image(path).size == (32, 32)


@pytest.mark.parametrize(
    'suffix, what',
    [
        ('.nef', 'which the installed Pillow does not read'),
        ('.svg', 'does not read'),
        ('.dcm', 'does not read'),
        ('.eps', 'does not read'),
        ('.txt', 'which is no image'),
        ('.mp4', 'is no image'),
        ('', 'file without an ending'),
    ],
)
def test_what_is_left_out_is_counted_and_named(pets, suffix, what):
    for place in ('cat/deep/x', 'dog/x'):
        (pets / f'{place}{suffix}').write_bytes(b'1234')
    expected = f'3 images are taken; left out: 2 x {suffix}.*{what}.*such as .*cat/deep/x{suffix}'
    with pytest.warns(DataWarning, match=expected):
        assert len(ImageFolder(path=pets)) == 3
    with pytest.warns(DataWarning, match=expected):
        assert len(list_images(str(pets))) == 3


@pytest.mark.parametrize(
    'clutter',
    [
        'cat/.ipynb_checkpoints/a-checkpoint.png',
        '__MACOSX/cat/._a.png',
        'cat/__MACOSX/a.png',
        'cat/._a.png',
        'cat/.a.png',
        'cat/@eaDir/a.png',
        '.git/x.png',
        '$RECYCLE.BIN/x.png',
        'cat/.hidden/x.png',
    ],
)
def test_clutter_is_left_out_without_a_word(pets, paint, clutter, recwarn):
    (pets / clutter).parent.mkdir(parents=True, exist_ok=True)
    paint(pets / clutter, 9)
    for name in ('Thumbs.db', 'desktop.ini', '.DS_Store'):
        (pets / 'cat' / name).write_bytes(b'1')
    assert names(pets) == ['cat/a.png', 'cat/deep/b.png', 'dog/c.png']
    assert ImageFolder(path=pets).classes == ['cat', 'dog'] and len(ImageFolder(path=pets)) == 3
    assert not [each for each in recwarn if issubclass(each.category, DataWarning)]


@pytest.mark.parametrize(
    'link, target',
    [('cat/loop', '..'), ('cat/loop', '.'), ('cat/deep/loop', '../..'), ('cat/deep/loop', '..')],
)
def test_a_link_back_is_not_followed(pets, link, target):
    os.symlink(target, pets / link)
    with pytest.warns(DataWarning, match='1 x link back to a folder that it lies in'):
        assert ImageFolder(path=pets).targets == [0, 0, 1]
    assert names(pets) == ['cat/a.png', 'cat/deep/b.png', 'dog/c.png']


def test_two_links_that_lead_to_each_other_end(pets, paint):
    paint(pets / 'dog/x/d.png', 7)
    os.symlink(pets / 'dog', pets / 'cat/dogs')
    os.symlink(pets / 'cat', pets / 'dog/x/cats')
    found = find_images(pets / 'cat')
    assert [os.path.relpath(path, pets) for path in found.images] == [
        'cat/a.png',
        'cat/deep/b.png',
        'cat/dogs/c.png',
        'cat/dogs/x/d.png',
    ]
    assert list(found.left_out) == ['link back to a folder that it lies in']


def test_links_elsewhere_are_followed(pets, tmp_path, paint):
    paint(tmp_path / 'store/d.png', 5)
    os.symlink(tmp_path / 'store', pets / 'dog/more')
    os.symlink(tmp_path / 'store/d.png', pets / 'cat/z.png')
    assert ImageFolder(path=pets).targets == [0, 0, 0, 1, 1]


def test_what_is_no_regular_file_is_named(pets):
    os.symlink('gone.png', pets / 'cat/broken.png')
    os.mkfifo(pets / 'cat/pipe.png')
    (pets / 'cat/folder.png').mkdir()
    with pytest.warns(DataWarning, match='2 x broken link, pipe or device'):
        assert len(ImageFolder(path=pets)) == 3
    with pytest.raises(DataError, match='pipe.png as an image: the path is a folder, a pipe or a device'):
        open_image(pets / 'cat/pipe.png')


def test_a_class_of_nothing_readable_says_what_it_holds(pets):
    (pets / 'bird').mkdir()
    (pets / 'bird/x.nef').write_bytes(b'1')
    with pytest.raises(DataError, match='bird.* holds no image that Pillow reads. Left out: 1 x .nef'):
        ImageFolder(path=pets)
    with pytest.raises(DataError, match='holds no image that Pillow reads. Left out: 1 x .nef'):
        list_images(str(pets / 'bird'))


@pytest.mark.parametrize(
    'train, val, test',
    [
        ('train', 'valid', 'test'),
        ('Train', 'Validation', 'Test'),
        ('training', 'dev', 'testing'),
        ('train', 'val', 'eval'),
    ],
)
def test_splits_by_their_other_names(tmp_path, paint, ids_of, train, val, test):
    for number, split in enumerate((train, val, test)):
        paint(tmp_path / 'pets' / split / 'cat/a.png', number)
    assert [ids_of(ImageFolder(tmp_path, split, 'pets'))[0][0] for split in ('train', 'val', 'test')] == [
        0,
        1,
        2,
    ]
    assert len(ImageFolder(tmp_path, 'train+val', 'pets')) == 2
    with pytest.raises(
        UserError, match=f'has the split folders {train}, {val}, {test}: choose one by split='
    ):
        ImageFolder(tmp_path, path='pets')


def test_split_folders_beside_others_are_no_classes(tmp_path, paint):
    for folder in ('train/cat', 'valid/cat', 'notes'):
        paint(tmp_path / 'pets' / folder / 'a.png', 1)
    with pytest.raises(
        UserError,
        match='has the split folders train, valid, and beside them notes: choose one by split=…, such as split="train"',
    ):
        ImageFolder(tmp_path, path='pets')


def test_a_class_may_be_called_train(tmp_path, paint):
    for name in ('train', 'car'):
        paint(tmp_path / name / 'a.png', 1)
    assert ImageFolder(path=tmp_path).classes == ['car', 'train']


def test_two_folders_of_one_split(tmp_path, paint):
    for split in ('train', 'val', 'valid'):
        paint(tmp_path / split / 'cat/a.png', 1)
    with pytest.raises(UserError, match="'val' and 'valid', which both are the split 'val'"):
        ImageFolder(tmp_path, 'val')


def test_images_without_a_class_folder(tmp_path, paint):
    paint(tmp_path / 'pets/a.png', 1)
    with pytest.raises(DataError, match='has no class folders.* 1 images lie in it without a class'):
        ImageFolder(tmp_path, path='pets')


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems take no such name')
def test_a_class_folder_that_is_not_utf8_is_refused_at_the_start(pets):
    shutil.copytree(pets / 'dog', pets / os.fsdecode(b'caf\xe9'))
    with pytest.raises(UserError, match=r'the class name "caf\\udce9" is not UTF-8'):
        ImageFolder(path=pets)


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems take no such name')
def test_an_image_whose_name_is_not_utf8_is_taken(pets):
    shutil.copy(pets / 'dog/c.png', pets / os.fsdecode(b'dog/caf\xe9.png'))
    data = ImageFolder(path=pets)
    assert len(data) == 4 and data[3][0].size == (8, 6)
    assert (
        module.printable(data.samples[3][0]).endswith('dog/caf\\udce9.png')
        and module.printable('ä.png') == 'ä.png'
    )


def test_extensions_are_those_of_pillow():
    assert {'.jpg', '.jfif', '.jpe', '.gif', '.png', '.tif', '.webp'} <= extensions()
    assert not {'.eps', '.ps', '.mpg', '.h5', '.wmf', '.txt', '.nef'} & extensions()


@pytest.mark.parametrize('suffix', ['.heic', '.jxl', '.avif', '.jfif', '.gif', '.jpe', '.jp2'])
def test_the_photos_of_phones_and_browsers_are_read(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    Image.new('RGB', (64, 48), (200, 30, 90)).save(path)
    assert find_images(tmp_path).images == [str(path)]
    pixel = open_image(path).getpixel((30, 20))
    assert np.allclose(pixel, (200, 30, 90), atol=12)


def test_a_photo_that_needs_the_extra_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'extensions', lambda: frozenset({'.png'}))
    (tmp_path / 'a.heic').write_bytes(b'x')
    assert 'which needs `pip install "vision-efficient-tuning[heic]"`' in find_images(tmp_path).says()
