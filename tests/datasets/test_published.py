"""The official layouts: which images, labels and class names each split has; missing, broken and
downloaded data.
"""

import hashlib
import os
import pickle
import socket
import stat
import tarfile
from hashlib import sha256

import numpy as np
import pytest
import torchvision.datasets
from scipy.io import savemat

from vet.datasets import web as web_module
from vet.datasets.archives import Download
from vet.datasets.cifar import CIFAR10, CIFAR100
from vet.datasets.cub200 import CUB200
from vet.datasets.flowers102 import Flowers102
from vet.datasets.nabirds import NABirds
from vet.datasets.stanford_cars import StanfordCars
from vet.datasets.stanford_dogs import StanfordDogs
from vet.errors import DataError, UserError
from vet.registry import DATASETS

ALL = [CIFAR10, CIFAR100, CUB200, Flowers102, NABirds, StanfordCars, StanfordDogs]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_bird_lists(folder, classes, images, paint):
    """classes: (class id, name); images: (image id, path, class id, is_train), painted with their place
    in the list.
    """
    for number, (_, path, _, _) in enumerate(images):
        paint(folder / 'images' / path, number)
    lists = {
        'classes': classes,
        'images': [row[:2] for row in images],
        'image_class_labels': [(row[0], row[2]) for row in images],
        'train_test_split': [(row[0], row[3]) for row in images],
    }
    for name, rows in lists.items():
        (folder / f'{name}.txt').write_text(''.join(f'{key} {value}\n' for key, value in rows))


@pytest.fixture
def cub(tmp_path, paint):
    write_bird_lists(
        tmp_path / 'CUB_200_2011',
        [(1, '001.Black_footed_Albatross'), (2, '002.Laysan_Albatross')],
        [
            (1, '001.Black_footed_Albatross/a_0046.jpg', 1, 0),
            (2, '001.Black_footed_Albatross/a_0009.jpg', 1, 1),
            (3, '002.Laysan_Albatross/b_0002.jpg', 2, 1),
            (4, '002.Laysan_Albatross/b_0033.jpg', 2, 0),
        ],
        paint,
    )
    return tmp_path


@pytest.fixture
def nabirds(tmp_path, paint):
    write_bird_lists(
        tmp_path / 'nabirds',
        [
            (0, 'Birds'),
            (2, 'Ducks, Geese, and Swans'),
            (900, 'Snow Goose (White morph)'),
            (1010, 'Bushtit'),
            (95, 'Brant'),
        ],
        [
            ('0000139e-21dc', '0900/00.jpg', 900, 1),
            ('000139ba-9cdf', '1010/01.jpg', 1010, 0),
            ('00014259-dfe1', '0095/02.jpg', 95, 1),
            ('00015-aa', '0900/03.jpg', 900, 0),
            ('00016-bb', '1010/04.jpg', 1010, 1),
        ],
        paint,
    )
    return tmp_path


@pytest.fixture
def flowers(tmp_path, paint, monkeypatch):
    folder = tmp_path / 'flowers-102'
    for number in range(1, 7):
        paint(folder / 'jpg' / f'image_{number:05d}.jpg', number)
    savemat(folder / 'imagelabels.mat', {'labels': np.array([[102, 1, 2, 77, 1, 102]], np.uint8)})
    savemat(folder / 'setid.mat', {'trnid': [[5, 1]], 'valid': [[2, 3]], 'tstid': [[6, 4]]})
    files = {
        **torchvision.datasets.Flowers102._file_dict,
        'label': ('imagelabels.mat', md5(folder / 'imagelabels.mat')),
        'setid': ('setid.mat', md5(folder / 'setid.mat')),
    }
    monkeypatch.setattr(torchvision.datasets.Flowers102, '_file_dict', files)
    return tmp_path


@pytest.fixture
def cars(tmp_path, paint):
    folder = tmp_path / 'stanford_cars'
    box = {f'bbox_{side}': 1 for side in ('x1', 'y1', 'x2', 'y2')}
    lists = {
        'devkit/cars_train_annos.mat': ('cars_train', [(2, 14), (1, 3)]),
        'cars_test_annos_withlabels.mat': ('cars_test', [(3, 30), (2, 41)]),
    }
    (folder / 'devkit').mkdir(parents=True)
    for file, (images, rows) in lists.items():
        for index, (_, number) in enumerate(rows, 1):
            paint(folder / images / f'{index:05d}.jpg', number)
        annotations = [
            {**box, 'class': label, 'fname': f'{index:05d}.jpg'} for index, (label, _) in enumerate(rows, 1)
        ]
        table = np.array(
            [tuple(row.values()) for row in annotations], dtype=[(key, object) for key in annotations[0]]
        )
        savemat(folder / file, {'annotations': table})
    names = ['AM General Hummer SUV 2000', 'Acura RL Sedan 2012', 'Audi TT']
    savemat(folder / 'devkit/cars_meta.mat', {'class_names': np.array(names, object)})
    return tmp_path


def write_dogs(folder, paint):
    breeds = ['n02085620-Chihuahua', 'n02086240-Shih-Tzu', 'n02116738-African_hunting_dog']
    lists = {'train': [(0, 5), (1, 6), (2, 7), (0, 8)], 'test': [(2, 9), (1, 10), (0, 11)]}
    for split, rows in lists.items():
        files = [f'{breeds[label]}/{breeds[label].split("-")[0]}_{number}.jpg' for label, number in rows]
        for file, (_, number) in zip(files, rows, strict=True):
            paint(folder / 'Images' / file, number)
        savemat(
            folder / f'{split}_list.mat',
            {
                'file_list': np.array(files, object).reshape(-1, 1),
                'labels': np.array([[label + 1] for label, _ in rows], np.uint8),
            },
        )


@pytest.fixture
def dogs(tmp_path, paint):
    write_dogs(tmp_path / 'stanford_dogs', paint)
    return tmp_path


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    tables = {'train': ([3, 1], [0, 99]), 'test': ([7], [42])}
    reader = torchvision.datasets.CIFAR100
    for name, (numbers, labels) in tables.items():
        data = np.repeat(np.array(numbers, np.uint8)[:, None] * 4, 3072, 1)
        data[:, 0] = 255  # red of the first pixel: planes come before rows
        (folder / name).write_bytes(pickle.dumps({'data': data, 'fine_labels': labels}))
        monkeypatch.setattr(reader, f'{name}_list', [[name, md5(folder / name)]])
    (folder / 'meta').write_bytes(
        pickle.dumps({'fine_label_names': [f'class {index}' for index in range(100)]})
    )
    monkeypatch.setattr(reader, 'meta', {**reader.meta, 'md5': md5(folder / 'meta')})
    return tmp_path


def test_cub(cub, ids_of):
    train, test = CUB200(cub, 'train'), CUB200(cub, 'test')
    assert train.classes == test.classes == ['Black_footed_Albatross', 'Laysan_Albatross']
    assert ids_of(train) == [(1, 0), (2, 1)]
    assert ids_of(test) == ids_of(CUB200(cub, 'eval')) == [(0, 0), (3, 1)]
    assert train.targets == [0, 1] and len(train) == 2
    assert all(type(label) is int for label in train.targets)


def test_nabirds_class_ids_have_gaps(nabirds, ids_of):
    train, test = NABirds(nabirds, 'train'), NABirds(nabirds, 'test')
    assert (
        train.classes == test.classes == ['Brant', 'Snow Goose (White morph)', 'Bushtit']
    )  # ids 95, 900, 1010
    assert ids_of(train) == [(0, 1), (2, 0), (4, 2)]
    assert ids_of(test) == [(1, 2), (3, 1)]


def test_flowers(flowers, ids_of):
    train, val, test = (Flowers102(flowers, split) for split in ('train', 'val', 'test'))
    assert ids_of(train) == [(5, 0), (1, 101)]
    assert ids_of(val) == [(2, 0), (3, 1)]
    assert ids_of(test) == [(6, 101), (4, 76)]
    assert ids_of(Flowers102(flowers, 'train+val')) == ids_of(train) + ids_of(val)
    assert (
        train.classes[0] == 'pink primrose'
        and train.classes[76] == 'passion flower'
        and len(train.classes) == 102
    )


def test_cars(cars, ids_of):
    assert ids_of(StanfordCars(cars, 'train')) == [(14, 1), (3, 0)]
    assert ids_of(StanfordCars(cars, 'test')) == [(30, 2), (41, 1)]
    assert StanfordCars(cars, 'test').classes == [
        'AM General Hummer SUV 2000',
        'Acura RL Sedan 2012',
        'Audi TT',
    ]


def test_dogs(dogs, ids_of):
    train, test = StanfordDogs(dogs, 'train'), StanfordDogs(dogs, 'test')
    assert ids_of(train) == [(5, 0), (6, 1), (7, 2), (8, 0)]
    assert ids_of(test) == [(9, 2), (10, 1), (11, 0)]
    assert train.classes == test.classes == ['Chihuahua', 'Shih-Tzu', 'African_hunting_dog']


def test_cifar100(cifar100, ids_of):
    train = CIFAR100(cifar100, 'train')
    assert ids_of(train) == [(3, 0), (1, 99)]
    assert ids_of(CIFAR100(cifar100, 'test')) == [(7, 42)]
    image, _ = train[0]
    assert image.size == (32, 32) and image.getpixel((0, 0)) == (255, 12, 12)
    assert train.classes[99] == 'class 99' and len(train.classes) == 100


@pytest.mark.parametrize(
    'name, plugin',
    [
        ('OxfordFlowers', Flowers102),
        ('CUB', CUB200),
        ('CUB-200-2011', CUB200),
        *((plugin.__name__, plugin) for plugin in ALL),
    ],
)
def test_registered(name, plugin):
    assert DATASETS.find(name) is plugin


def test_a_split_that_is_not_there(cub, flowers):
    with pytest.raises(UserError, match=r"split of CUB200 'val'.*Allowed: test, train\."):
        CUB200(cub, 'val')
    with pytest.raises(UserError, match='train\\+val'):
        CUB200(cub, 'train+val')
    with pytest.raises(UserError, match=r'Allowed: test, train, train\+val, val\.'):
        Flowers102(flowers, 'training')


@pytest.mark.parametrize('plugin', ALL)
def test_missing_data_names_the_file_and_two_ways(plugin, tmp_path, monkeypatch):
    def offline(self, root):
        raise OSError('no network')

    monkeypatch.setattr(plugin, 'fetch', offline)
    with pytest.raises(DataError) as caught:
        plugin(tmp_path / 'data', 'train')
    text = str(caught.value)
    assert str(tmp_path / 'data' / plugin.folder / plugin.needs[0]) in text
    assert '--data-root' in text and 'VET_DATA_ROOT' in text and plugin.layout in text
    assert (plugin.by_hand or 'run once with a network, so that it is downloaded from http') in text
    assert plugin.by_hand or 'no network' in text
    assert '\n' not in text


def test_a_silent_server_is_left_after_the_limit(tmp_path, monkeypatch):
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        address = f'http://127.0.0.1:{silent.getsockname()[1]}/CUB_200_2011.tgz'
        monkeypatch.setattr(CUB200, 'downloads', (Download(address, 'md5:0'),))
        monkeypatch.setattr(web_module, 'ANSWER_SECONDS', 0.2)
        with pytest.raises(DataError, match='timed out.*two ways'):
            CUB200(tmp_path)
    assert socket.getdefaulttimeout() is None


def test_missing_image_and_broken_list(cub):
    (cub / 'CUB_200_2011/images/002.Laysan_Albatross/b_0002.jpg').unlink()
    with pytest.raises(DataError, match='1 are missing.*b_0002.jpg'):
        CUB200(cub, 'train')
    assert len(CUB200(cub, 'test')) == 2
    (cub / 'CUB_200_2011/train_test_split.txt').write_text('1 0\n')
    with pytest.raises(DataError, match='cannot be read'):
        CUB200(cub, 'test')


def test_published_files_are_checked(flowers, monkeypatch):
    (flowers / 'flowers-102/setid.mat').write_bytes(b'other')
    with pytest.raises(DataError, match='not the published one'):
        Flowers102(flowers)


def test_incomplete_folder_is_left_alone(cub, monkeypatch):
    (cub / 'CUB_200_2011/classes.txt').unlink()
    monkeypatch.setattr(CUB200, 'fetch', lambda self, root: pytest.fail("downloads over the user's folder"))
    with pytest.raises(DataError, match='classes.txt.*left as it is'):
        CUB200(cub)


def test_complete_data_on_a_read_only_root(cub, ids_of, monkeypatch):
    monkeypatch.setattr(CUB200, 'fetch', lambda self, root: pytest.fail('downloads what is there'))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in cub.rglob('*')}
    folders = [cub, *(path for path in cub.rglob('*') if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert ids_of(CUB200(cub)) == [(1, 0), (2, 1)]
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in cub.rglob('*')} == before


def test_a_broken_image_is_named_when_it_is_asked_for(cub):
    path = cub / 'CUB_200_2011/images/001.Black_footed_Albatross/a_0009.jpg'
    path.write_bytes(path.read_bytes()[:200])
    train = CUB200(cub, 'train')
    with pytest.raises(DataError, match='a_0009.jpg'):
        train[0]
    assert train[1][1] == 1


@pytest.fixture
def cub_archive(cub, web, monkeypatch):
    """The fixture's CUB folder as an archive on the local server; (path of the archive, an empty data
    root).
    """
    folder, address = web
    archive = folder / 'CUB_200_2011.tgz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(cub / 'CUB_200_2011', 'CUB_200_2011')
    monkeypatch.setattr(
        CUB200, 'downloads', (Download(f'{address}/CUB_200_2011.tgz', f'md5:{md5(archive)}'),)
    )
    return archive, cub / 'data'


def test_download(cub_archive, ids_of):
    archive, root = cub_archive
    with pytest.raises(DataError, match='classes.txt|images'):
        CUB200(root, download=False)
    assert not root.exists()
    assert ids_of(CUB200(root, 'train')) == [(1, 0), (2, 1)]
    assert os.listdir(root) == ['CUB_200_2011']
    archive.unlink()
    assert len(CUB200(root, 'test')) == 2


def test_download_of_something_else_is_refused(cub_archive):
    archive, root = cub_archive
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(DataError, match='download from http.* failed: .*corrupted.*two ways'):
        CUB200(root)
    assert os.listdir(root) == []


def test_another_process_may_finish_the_download_first(cub_archive, ids_of, monkeypatch):
    _, root = cub_archive
    fetch = CUB200.fetch

    def fetch_twice(self, staging):
        fetch(self, root)
        fetch(self, staging)

    monkeypatch.setattr(CUB200, 'fetch', fetch_twice)
    assert ids_of(CUB200(root)) == [(1, 0), (2, 1)]
    assert os.listdir(root) == ['CUB_200_2011']


def test_download_of_dogs_is_read_whole_before_it_is_kept(web, tmp_path, paint, ids_of, monkeypatch):
    folder, address = web
    write_dogs(tmp_path / 'source', paint)
    root = tmp_path / 'data'

    def pack(*left_out):
        for archive, names in {
            'images.tar': ['Images'],
            'lists.tar': ['train_list.mat', 'test_list.mat'],
        }.items():
            with tarfile.open(folder / archive, 'w') as tar:
                for name in names:
                    tar.add(
                        tmp_path / 'source' / name,
                        name,
                        filter=lambda m: None if m.name.endswith(left_out) else m,
                    )
        monkeypatch.setattr(
            StanfordDogs,
            'downloads',
            tuple(
                Download(f'{address}/{name}', f'sha256:{sha256((folder / name).read_bytes()).hexdigest()}')
                for name in ('images.tar', 'lists.tar')
            ),
        )

    pack('n02086240_10.jpg')
    with pytest.raises(DataError, match='1 are missing.*n02086240_10.jpg'):
        StanfordDogs(root)
    assert os.listdir(root) == []
    pack('nothing')
    assert ids_of(StanfordDogs(root, 'test')) == [(9, 2), (10, 1), (11, 0)]
    assert sorted(os.listdir(root / 'stanford_dogs')) == ['Images', 'test_list.mat', 'train_list.mat']


def test_real_flowers(real_data):
    sizes = {split: Flowers102(real_data, split, download=False) for split in ('train', 'val', 'test')}
    assert {split: len(data) for split, data in sizes.items()} == {'train': 1020, 'val': 1020, 'test': 6149}
    assert all(sizes[split].targets.count(label) == 10 for split in ('train', 'val') for label in range(102))
    train = sizes['train']
    name_of = {path.rsplit('/', 1)[-1]: train.classes[label] for path, label in train.samples}
    assert name_of['image_06765.jpg'] == 'pink primrose' and name_of['image_00116.jpg'] == 'passion flower'
    image, label = train[0]
    assert (label, image.mode, min(image.size)) == (0, 'RGB', 224)
