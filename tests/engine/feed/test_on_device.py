"""Transforms of tensors draw what those of PIL images draw, in the workers and on the device, and give
the same but for rounding.
"""

import resource

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.engine.runs import CROPS, build, ended, ended_after_a_break, folder_run
from vet.datasets.base import ImageDataset
from vet.datasets.hold_out import Part
from vet.datasets.image_folder import ImageFolder
from vet.datasets.multitask import MultiTask
from vet.engine.feed import on_device
from vet.engine.feed.batches import load
from vet.engine.feed.image_cache import CachedImages, cached_images
from vet.engine.feed.on_device import load_on_device
from vet.errors import DataError, UserError
from vet.transforms.torchvision import build_transform, on_tensors, split_still

CPU = torch.device('cpu')
RANDOM = [
    dict(type='RandomResizedCrop'),
    dict(type='RandomHorizontalFlip'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
]
VIEWS = dict(
    random=RANDOM,
    resized=[dict(type='Resize', size=14), *RANDOM],
    cropped=[dict(type='EvaluationCrop'), *RANDOM],
    still=[dict(type='Resize', size=10), dict(type='CenterCrop')],
    none=[dict(type='Resize', size=[9, 9])],
    noise=[
        dict(type='RandomCrop', size=9),
        dict(type='ToImage'),
        dict(type='RandomErasing', p=1.0, value='random'),
    ],
)
KEYS = [[(2, i, 1) for i in range(start, start + 7)] for start in (0, 9)]


def view(entries):
    return build_transform(entries, (9, 9), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.9, 'bicubic')


def images(batches):
    return torch.stack([batch.images for batch in batches])


@pytest.fixture
def room(monkeypatch):
    """A CPU with the memory of a GPU."""
    monkeypatch.setattr(on_device, '_free_bytes', lambda device: 10**9)


@pytest.mark.parametrize('entries', VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_each_way_draws_the_same(jpegs, monkeypatch, entries, workers):
    dataset, plain = ImageFolder(jpegs, 'train'), view(entries)
    pil = images(load(dataset, {None: plain}, 5, KEYS, workers, CPU))
    tensors = on_tensors(plain)
    in_workers = images(load(dataset, {None: tensors}, 5, KEYS, workers, CPU))
    levels = (in_workers - pil).abs() * torch.tensor([0.2, 0.3, 0.4])[:, None, None] * 255
    assert levels.mean() < 1.5 and (levels > 6).float().mean() < 0.02
    assert images(load_on_device(dataset, {None: tensors}, 5, KEYS, workers, CPU)).equal(in_workers)
    still, rest = split_still(tensors)
    kept = cached_images(dataset, still, as_tensors=True)
    assert images(load(kept, {None: rest}, 5, KEYS, workers, CPU)).equal(in_workers)
    assert images(load_on_device(kept, {None: rest}, 5, KEYS, workers, CPU)).equal(in_workers)
    monkeypatch.setattr(on_device, '_free_bytes', lambda device: kept.nbytes / on_device.SHARE)
    monkeypatch.setattr(on_device, 'read', None)  # without workers
    assert images(load_on_device(kept, {None: rest}, 5, KEYS, workers, CPU)).equal(in_workers)
    monkeypatch.setattr(CachedImages, '__getitem__', None)  # read once
    assert images(load_on_device(kept, {None: rest}, 5, KEYS, workers, CPU)).equal(in_workers)


def test_images_that_do_not_fit_are_read(jpegs, monkeypatch):
    kept = cached_images(ImageFolder(jpegs, 'train'), [], as_tensors=True)
    assert kept.nbytes == sum(3 * image.width * image.height for image, _ in ImageFolder(jpegs, 'train'))
    monkeypatch.setattr(on_device, '_free_bytes', lambda device: (kept.nbytes - 1) / on_device.SHARE)
    monkeypatch.setattr(on_device, '_picked', None)
    assert len(list(load_on_device(kept, {None: on_tensors(view(RANDOM))}, 5, KEYS, 0, CPU))) == 2


def test_draws_leave_the_generators_alone(jpegs):
    batches = load_on_device(ImageFolder(jpegs, 'train'), {None: on_tensors(view(RANDOM))}, 5, KEYS, 0, CPU)
    next(batches)  # a loader draws when it begins
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(batches)
    assert torch.rand(3).equal(expected)


RUNS = {
    'tensors': {},
    'device': {'train.transform_on': 'device'},
    'kept': {'train.cache_images': True},
    'kept, device': {'train.cache_images': True, 'train.transform_on': 'device'},
}


@pytest.mark.parametrize('name', list(RUNS)[1:])
def test_runs_learn_the_same(tmp_path, jpegs, room, name):
    expected = ended(folder_run(tmp_path / 'tensors', jpegs, **{'train.transform_on': 'tensor'}))
    assert (
        ended(folder_run(tmp_path / 'other', jpegs, **{'train.transform_on': 'tensor'} | RUNS[name]))
        == expected
    )


def test_pil_is_the_default(tmp_path, jpegs):
    runs = [
        ended(folder_run(tmp_path / name, jpegs, **options))
        for name, options in (
            ('default', {}),
            ('pil', {'train.transform_on': 'pil'}),
            ('tensor', {'train.transform_on': 'tensor'}),
        )
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
def test_several_tasks(tmp_path, jpegs):
    train, test = ImageFolder(jpegs, 'train'), ImageFolder(jpegs, 'test')
    data = dict(train_dataset=MultiTask(dict(a=train, b=test)), eval_dataset=MultiTask(dict(a=test, b=train)))
    runs = [
        ended(
            build(
                tmp_path / where,
                data=data,
                **{
                    'train.transform_on': where,
                    'train.transform': CROPS,
                    'train.cache_images': where == 'device',
                    'model.tasks': dict(a={}, b=dict(head=dict(type='MLP'))),
                    'train.dataloader': dict(batch_size_per_gpu=8, workers_per_gpu=0),
                },
            )
        )
        for where in ('tensor', 'device')
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize('where', ['tensor', 'device'])
def test_a_run_goes_on_as_if_unbroken(tmp_path, jpegs, room, where):
    options = {
        'train.transform_on': where,
        'train.cache_images': True,
        'train.checkpoint': dict(every_steps=1),
    }
    expected = ended(folder_run(tmp_path / 'whole', jpegs, **options))
    assert (
        ended_after_a_break(lambda resume: folder_run(tmp_path / 'broken', jpegs, resume, **options), at=4)
        == expected
    )


@pytest.mark.parametrize('where', ['tensor', 'device'])
def test_features_of_tensors(tmp_path, jpegs, where):
    options = {
        'train.transform_on': where,
        'train.transform': [dict(type='EvaluationCrop')],
        'model.tuners': [dict(type='LinearProbe')],
    }
    expected = ended(folder_run(tmp_path / 'images', jpegs, **options))
    assert (
        ended(
            folder_run(
                tmp_path / 'features',
                jpegs,
                **options | {'train.cache_images': True, 'train.cache_features': True},
            )
        )
        == expected
    )


def test_a_transform_may_write_into_its_image(tmp_path, jpegs, room):
    """Not into the one that stays on the device."""
    options = {
        'train.transform': [
            dict(type='RandomErasing', p=1.0, inplace=True),
            dict(type='Resize', size=[8, 8]),
        ],
        'train.cache_images': True,
    }
    assert ended(
        folder_run(tmp_path / 'tensor', jpegs, **{'train.transform_on': 'tensor'} | options)
    ) == ended(folder_run(tmp_path / 'device', jpegs, **{'train.transform_on': 'device'} | options))


def test_a_large_batch_needs_few_files(jpegs):
    """A tensor that comes from a worker holds a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder, indices = ImageFolder(jpegs, 'train'), [i % 24 for i in range(600)]
    dataset = Part(folder, indices, [folder.targets[i] for i in indices])
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        [batch] = load_on_device(
            dataset, {None: on_tensors(view(RANDOM))}, 5, [[(0, i, 1) for i in range(600)]], 1, CPU
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(batch.images) == 600


class OnlyPil:
    def __call__(self, image):
        return image.rotate(90)


@pytest.mark.parametrize('loads', [load, load_on_device])
def test_errors_name_the_image(jpegs, loads):
    transform = on_tensors(v2.Compose([OnlyPil(), v2.ToImage()]))
    with pytest.raises(UserError, match=r'image 0 of ImageFolder .*AttributeError.*rotate.*train.transform'):
        list(loads(ImageFolder(jpegs, 'train'), {None: transform}, 0, KEYS, 0, CPU))
    broken = ImageDataset('ab', [(np.zeros((8, 8), np.uint8), 0), ('missing.png', 1)])
    with pytest.raises(DataError, match='missing.png'):
        list(loads(broken, {None: on_tensors(v2.ToImage())}, 0, [[(0, 0, 1), (0, 1, 1)]], 0, CPU))


def test_a_dataset_may_give_images_as_tensors(jpegs):
    class Tensors(ImageFolder):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return tv_tensors.Image(v2.functional.pil_to_tensor(image)), label

    transform = on_tensors(view(RANDOM))
    expected = images(load(ImageFolder(jpegs, 'train'), {None: transform}, 5, KEYS, 0, CPU))
    assert images(load(Tensors(jpegs, 'train'), {None: transform}, 5, KEYS, 0, CPU)).equal(expected)


def test_the_refusal_of_another_place(tmp_path, jpegs):
    with pytest.raises(UserError, match="unknown train.transform_on 'gpu'. Allowed: device, pil, tensor"):
        folder_run(tmp_path, jpegs, **{'train.transform_on': 'gpu'})


def test_kept_tensors_are_kept_images(jpegs):
    kept = cached_images(ImageFolder(jpegs, 'train'), [v2.Resize(12)])
    tensors = CachedImages(kept.path, kept.classes, kept.targets, as_tensors=True)
    for (image, label), (tensor, other) in zip(
        (kept[i] for i in range(24)), (tensors[i] for i in range(24)), strict=True
    ):
        assert np.array_equal(np.asarray(image), tensor.permute(1, 2, 0)) and label == other
