"""Images kept after the still beginning of their transform are those that would be decoded anew, in
every run, however it goes.
"""

import os
import pickle
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.engine.feed.test_features import Noisy
from tests.engine.runs import CROPS, SmallDigits, ended, folder_run, small
from vet.datasets import image as decoding
from vet.datasets.base import ImageDataset
from vet.datasets.hold_out import Part
from vet.datasets.image_folder import ImageFolder
from vet.datasets.multitask import MultiTask
from vet.engine.feed import image_cache
from vet.engine.feed.batches import load
from vet.engine.feed.image_cache import NotKeptError, cached_images
from vet.engine.learner import Learner
from vet.errors import DataError

SHORT = [v2.Resize(12)]
CACHED = {'train.cache_images': True}
STILL = [dict(type='Resize', size=12), dict(type='CenterCrop', size=8)]


def files(cache):
    return sorted(cache.glob('images-*.bin'))


def pixels(dataset):
    return [(np.asarray(image).tolist(), label) for image, label in (dataset[i] for i in range(len(dataset)))]


def after(dataset, still):
    return [
        (np.asarray(v2.Compose([*still, v2.Identity()])(image)).tolist(), label)
        for image, label in (dataset[i] for i in range(len(dataset)))
    ]


@pytest.mark.parametrize(
    'still', [[], SHORT, [v2.Resize(12), v2.CenterCrop((8, 10))]], ids=['whole', 'resized', 'cropped']
)
@pytest.mark.parametrize('workers', [0, 2])
def test_each_image_is_what_its_transform_begins_with(jpegs, cache, still, workers):
    dataset = ImageFolder(jpegs, 'train')
    kept = cached_images(dataset, still, workers)
    assert pixels(kept) == after(dataset, still) and kept.classes == dataset.classes
    assert len({tuple(size) for size in kept.sizes_N2.tolist()}) == (1 if len(still) == 2 else 12)
    shutil.rmtree(cache)
    assert pixels(kept) == after(dataset, still)  # its file is open


def test_a_copy_in_another_process_reads_the_same(jpegs):
    kept = cached_images(ImageFolder(jpegs, 'train'), SHORT)
    assert pixels(pickle.loads(pickle.dumps(kept))) == pixels(kept)


def test_images_in_memory_and_parts(cache):
    draw = np.random.default_rng(0)
    sources = [draw.integers(0, 256, (9, 14 + i), np.uint8) for i in range(8)]
    dataset = ImageDataset(
        'ab', [(source, i % 2) for i, source in enumerate([*sources[:7], Image.fromarray(sources[7])])]
    )
    part = Part(dataset, [6, 1, 7], [0, 1, 1])
    assert pixels(cached_images(part, SHORT)) == after(part, SHORT)
    nested = Part(part, [2, 0], [1, 0])
    assert pixels(cached_images(nested, SHORT)) == after(nested, SHORT)
    sources[1][3, 3] ^= 1
    assert pixels(cached_images(part, SHORT)) == after(part, SHORT)
    assert len(files(cache)) == 3


@pytest.mark.parametrize(
    'options',
    [
        {},
        pytest.param({'train.transform': STILL}, marks=pytest.mark.slow),
        pytest.param({'train.transform': [*STILL, *CROPS]}, marks=pytest.mark.slow),
        {'evaluation.select': 'best'},
        {'train.transform': STILL, 'train.cache_features': True, 'model.tuners': [dict(type='LinearProbe')]},
        pytest.param(
            {
                'train.dataloader': dict(batch_size_per_gpu=8, workers_per_gpu=2),
                'evaluation.dataloader.workers_per_gpu': 1,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=['crops', 'still', 'resized crops', 'validation', 'features', 'workers'],
)
def test_a_run_learns_what_it_learns_without(tmp_path, jpegs, cache, monkeypatch, options):
    expected = ended(folder_run(tmp_path / 'files', jpegs, **options))
    assert not files(cache)
    assert ended(folder_run(tmp_path / 'kept', jpegs, **CACHED | options)) == expected
    assert len(files(cache)) == (3 if 'evaluation.select' in options else 2)
    # nothing is decoded again, but the first image, by which the transforms are tried
    decode = decoding._decode
    monkeypatch.setattr(
        decoding,
        '_decode',
        lambda file, *range_: {'train/a/0.jpg': decode}['/'.join(str(file).split('/')[-3:])](file, *range_),
    )
    assert ended(folder_run(tmp_path / 'again', jpegs, **CACHED | options)) == expected


@pytest.mark.parametrize('workers', [0, 3])
def test_draws_depend_on_the_image_alone(jpegs, workers):
    dataset, [still, rest] = (
        ImageFolder(jpegs, 'train'),
        [SHORT, v2.Compose([v2.RandomCrop(8), v2.ToImage()])],
    )
    keys = [[(2, i, 1) for i in range(start, start + 5)] for start in (0, 7)]
    expected = load(dataset, {None: v2.Compose([*still, rest])}, 4, keys, 0, torch.device('cpu'))
    found = load(cached_images(dataset, still), {None: rest}, 4, keys, workers, torch.device('cpu'))
    for one, other in zip(expected, found, strict=True):
        assert one.images.equal(other.images) and one.labels.equal(other.labels)


def test_a_file_that_is_cut_short_is_told(jpegs, cache):
    kept = cached_images(ImageFolder(jpegs, 'train'), SHORT)
    os.truncate(kept.path, kept.path.stat().st_size - 1)
    with pytest.raises(DataError, match=r'images-.*ends within image 23; delete the file'):
        kept[23]


def test_a_file_that_changes_is_noticed(tmp_path, jpegs, cache):
    root = shutil.copytree(jpegs, tmp_path / 'own')
    dataset, path = ImageFolder(root, 'train'), root / 'train' / 'a' / '3.jpg'
    first = pixels(cached_images(dataset, SHORT))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = pixels(cached_images(dataset, SHORT))
    assert [i for i in range(24) if first[i] != second[i]] == [
        [source for source, _ in dataset.samples].index(str(path))
    ]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # of the same size
    cached_images(dataset, SHORT)
    assert len(files(cache)) == 3


@pytest.mark.parametrize(
    'other',
    [
        v2.Resize(11),
        v2.Resize(12, max_size=14),
        v2.Resize((12, 12)),
        v2.CenterCrop(12),
        v2.Resize(12, v2.InterpolationMode.BICUBIC),
    ],
    ids=repr,
)
def test_another_resize_has_a_file_of_its_own(jpegs, cache, other):
    dataset = ImageFolder(jpegs, 'test')
    for still in (SHORT, [other], [v2.Resize(12)]):
        assert pixels(cached_images(dataset, still)) == after(dataset, still)
    assert len(files(cache)) == 2


def fill_and_tell(jpegs, cache, told, die_at=None):
    """Of a child process: keeps the images, and leaves a file if it was the one that decoded them."""
    os.environ['VET_CACHE_DIR'] = str(cache)
    calls, size = [], shutil.disk_usage
    fill = image_cache._fill
    image_cache._fill = lambda *args: (told.touch(), fill(*args))
    image_cache.CHUNK = 5

    def dying(path):
        calls.append(path)
        if len(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return size(path)

    shutil.disk_usage = dying  # asked once a chunk
    cached_images(ImageFolder(jpegs, 'train'), SHORT, workers=0)


@pytest.mark.slow
def test_processes_at_once_decode_once(process, tmp_path, jpegs, cache):
    children = [process(fill_and_tell, jpegs, cache, tmp_path / name) for name in 'abc']
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sum((tmp_path / name).exists() for name in 'abc') == len(files(cache)) == 1
    dataset = ImageFolder(jpegs, 'train')
    assert pixels(cached_images(dataset, SHORT)) == after(dataset, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize('moment', [1, 5])
def test_what_a_killed_process_has_begun_is_never_read(process, tmp_path, jpegs, cache, moment):
    child = process(fill_and_tell, jpegs, cache, tmp_path / 'told', moment)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not files(cache) and list(cache.glob('.*.tmp'))
    dataset = ImageFolder(jpegs, 'train')
    assert pixels(cached_images(dataset, SHORT)) == after(dataset, SHORT)
    assert sorted(path.suffix for path in cache.iterdir()) == ['.bin', '.lock']


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint(tmp_path, jpegs, monkeypatch):
    expected = ended(folder_run(tmp_path / 'whole', jpegs))
    begun = folder_run(tmp_path / 'begun', jpegs, **CACHED)
    with monkeypatch.context() as patch:
        steps, step = [], Learner.step
        patch.setattr(
            Learner, 'step', lambda *args: steps.append(1) or (step(*args) if len(steps) < 5 else 1 / 0)
        )
        with pytest.raises(ZeroDivisionError):
            begun.train()
    assert ended(folder_run(tmp_path / 'begun', jpegs, 'auto', **CACHED)) == expected


class Own(ImageFolder):
    def open(self, source):
        return super().open(source).rotate(float(torch.rand(())))


@pytest.mark.parametrize(
    'change, reason',
    [
        (
            'disk',
            r'24 images take about 0 MiB, and .* has 0 MiB free; set VET_CACHE_DIR to a folder with more, or let the transform',
        ),
        ('folder', 'set VET_CACHE_DIR to another folder'),
        ('link', 'is no file: No such file'),
        (Noisy('train'), 'Noisy reads images in another way than vet'),
        (Own, 'Own reads images in another way than vet'),
    ],
    ids=['disk', 'folder', 'link', 'item', 'open'],
)
def test_where_images_cannot_be_kept(jpegs, tmp_path, cache, monkeypatch, change, reason):
    dataset = ImageFolder(jpegs, 'train')
    if change == 'disk':
        size = sum(image.size[0] * image.size[1] * 3 for image, _ in (dataset[i] for i in range(24)))
        monkeypatch.setattr(image_cache.shutil, 'disk_usage', lambda _: SimpleNamespace(free=size // 3))
    elif change == 'folder':
        cache.write_text('a file')
    elif change == 'link':
        dataset = ImageDataset('a', [('http://localhost/a.jpg', 0)])
    else:
        dataset = change if isinstance(change, Noisy) else change(jpegs, 'train')
    with pytest.raises(NotKeptError, match=reason):
        cached_images(dataset, [])
    assert not files(cache) and not list(tmp_path.rglob('.*.tmp'))


def test_a_run_says_once_why_nothing_is_kept(tmp_path, jpegs, monkeypatch, capsys):
    expected = ended(folder_run(tmp_path / 'files', jpegs))
    monkeypatch.setattr(image_cache.shutil, 'disk_usage', lambda _: SimpleNamespace(free=10))
    assert ended(folder_run(tmp_path / 'kept', jpegs, **CACHED)) == expected
    told = capsys.readouterr().err
    assert [
        told.count(f'train.cache_images has no effect on the {split} images') for split in ('train', 'test')
    ] == [1, 1]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_image_is_named(tmp_path, jpegs, cache, workers):
    root = shutil.copytree(jpegs, tmp_path / 'own')
    path = root / 'train' / 'b' / '7.jpg'
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=str(path)):
        cached_images(ImageFolder(root, 'train'), [], workers)
    assert [path.suffix for path in cache.iterdir()] == ['.lock']


def test_several_tasks(jpegs, cache):
    tasks = dict(one=ImageFolder(jpegs, 'train'), two=ImageFolder(jpegs, 'test'))
    views = dict(
        one=v2.Compose([v2.Resize(12), v2.RandomCrop(8)]), two=v2.Compose([v2.RandomCrop(8), v2.ToImage()])
    )
    trainer = SimpleNamespace(train=SimpleNamespace(dataloader=SimpleNamespace(workers_per_gpu=0)))
    found, left = image_cache.ImageCache(trainer, SimpleNamespace(is_main_process=True)).kept(
        'train', MultiTask(tasks), views
    )
    assert pixels(found) == after(tasks['one'], SHORT) + after(tasks['two'], [])
    assert found.task_of(24) == 'two' and found.classes == MultiTask(tasks).classes
    assert {task: list(map(type, view.transforms)) for task, view in left.items()} == dict(
        one=[v2.RandomCrop], two=[v2.RandomCrop, v2.ToImage]
    )


def test_test_images_are_read_before_step_0_and_after_the_last_step_alone(tmp_path, monkeypatch):
    read, steps, step, preadv = [], [], Learner.step, os.preadv
    monkeypatch.setattr(Learner, 'step', lambda *args: steps.append(1) or step(*args))
    trainer = small(tmp_path / 'run', **CACHED | {'train.transform': [dict(type='RandomHorizontalFlip')]})
    keep = image_cache._keep

    def watched(dataset, *args):
        kept = keep(dataset, *args)
        if dataset is trainer.data['test']:
            test.append(kept[0]._file.fileno())
            read.append(len(steps))
        return kept

    test = []
    monkeypatch.setattr(image_cache, '_keep', watched)
    monkeypatch.setattr(
        os,
        'preadv',
        lambda file, *args: (read.append(len(steps)) if file in test else None) or preadv(file, *args),
    )
    trainer.train()
    assert set(read) == {0, 8} and len(read) == 121 and len(steps) == 8


def read_and_tell(cache, told):
    """Of a child process: reads 48 MB of pixels, and writes by how much its memory grew."""
    os.environ['VET_CACHE_DIR'] = str(cache)
    kept = cached_images(ImageDataset('a', [(np.full((400, 400), i, np.uint8), 0) for i in range(100)]), [])
    grown = []
    for i in range(100):
        assert np.asarray(kept[i][0])[0, 0, 0] == i
        grown.append(int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE'))
    told.write_text(str(grown[-1] - grown[0]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images_read(process, cache, tmp_path):
    child = process(read_and_tell, cache, tmp_path / 'told')
    child.join()
    assert int((tmp_path / 'told').read_text()) < 6e6


def test_a_digits_run(tmp_path, cache):
    assert ended(small(tmp_path / 'kept', **CACHED)) == ended(small(tmp_path / 'files'))
    assert len(files(cache)) == 2 and len(SmallDigits('train')) == 120
