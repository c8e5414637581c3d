"""VTAB-1k in the layout of NOAH's archive: which list a split reads, whole class lists, and what is
refused.
"""

import pytest

from vet.datasets.vtab import CLASSES, GROUPS, VTAB
from vet.errors import DataError, UserError
from vet.registry import DATASETS

LISTS = {
    'train800': [(1, 3), (2, 0)],
    'val200': [(3, 1)],
    'train800val200': [(4, 3), (5, 0), (6, 1)],
    'test': [(7, 2), (8, 3)],
}


@pytest.fixture
def kitti(tmp_path, paint):
    """The folder of a task of four classes, of which no training list has all."""
    folder = tmp_path / 'vtab-1k' / 'kitti'
    for name, rows in LISTS.items():
        files = [f'images/{name}/{place:06d}.jpg' for place in range(len(rows))]
        for file, (number, _) in zip(files, rows, strict=True):
            paint(folder / file, number)
        (folder / f'{name}.txt').write_text(
            ''.join(f'{file} {label}\n' for file, (_, label) in zip(files, rows, strict=True))
        )
    return folder


@pytest.mark.parametrize(
    'split, name',
    [
        ('train', 'train800'),
        ('val', 'val200'),
        ('train+val', 'train800val200'),
        ('test', 'test'),
        ('eval', 'test'),
    ],
)
def test_each_split_has_a_list_of_its_own(kitti, ids_of, split, name):
    dataset = DATASETS.build(dict(type='VTAB', task='kitti', split=split), root=kitti.parents[1])
    assert ids_of(dataset) == LISTS[name]
    assert dataset.classes == ['0', '1', '2', '3']


def test_the_benchmark():
    assert {group: len(tasks) for group, tasks in GROUPS.items()} == dict(
        natural=7, specialized=4, structured=8
    )
    names = (
        'cifar caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon eurosat resisc45 '
        'diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori smallnorb_azi '
        'smallnorb_ele'
    ).split()
    numbers = (
        100,
        102,
        47,
        102,
        37,
        10,
        397,
        2,
        10,
        45,
        5,
        8,
        6,
        6,
        4,
        16,
        16,
        18,
        9,
    )  # as in the code of FacT
    assert CLASSES == dict(zip(names, numbers, strict=True))


def test_an_unknown_task_or_split(kitti):
    with pytest.raises(
        UserError,
        match=r"task of (VTAB|dataset 'VTAB') 'kiti'\. Did you mean 'kitti'\? Allowed: caltech101, cifar",
    ):
        VTAB(kitti.parents[1], task='kiti')
    with pytest.raises(UserError, match=r"split of VTAB 'all'.*Allowed: test, train, train\+val, val\."):
        VTAB(kitti.parents[1], 'all', task='kitti')


def test_a_missing_list_is_named_with_two_ways(kitti):
    (kitti / 'test.txt').unlink()
    with pytest.raises(
        DataError,
        match=r"kitti/test\.txt' is missing\. There are two ways .*--data-root.*vtab-1k/<task>/.*NOAH",
    ):
        VTAB(kitti.parents[1], 'test', task='kitti')
    assert len(VTAB(kitti.parents[1], 'train', task='kitti')) == 2


def test_a_missing_image_is_named(kitti):
    (kitti / 'images/val200/000000.jpg').unlink()
    with pytest.raises(
        DataError,
        match=r'VTAB \(kitti, val200\.txt\) lists 1 images of which 1 are missing.*val200/000000\.jpg',
    ):
        VTAB(kitti.parents[1], 'val', task='kitti')


@pytest.mark.parametrize(
    'line', ['images/test/000001.jpg 4', 'images/test/000001.jpg -1', 'images/test/000001.jpg', '3', '']
)
def test_a_broken_line_is_named(kitti, line):
    (kitti / 'test.txt').write_text(f'images/test/000000.jpg 2\n{line}\n')
    with pytest.raises(DataError, match=r'line 2 of .*test\.txt.*a class number from 0 to 3'):
        VTAB(kitti.parents[1], 'test', task='kitti')
