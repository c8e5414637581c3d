"""Which images make up which step, and what augmentation makes of them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory as loader_pins
from torchvision.transforms import v2

from vet.datasets.base import ImageDataset
from vet.engine.feed.batches import Order, load
from vet.errors import DataError, UserError
from vet.seeding import seeded
from vet.transforms.torchvision import build_transform

CPU = torch.device('cpu')
SHAPES = [
    (10, 4, 1, 1),
    (10, 4, 2, 2),
    (9, 4, 3, 2),
    (13, 4, 2, 3),
    (8, 4, 1, 2),
    (5, 8, 2, 2),
    (41, 4, 5, 4),
]


def orders(length, batch_size, accumulate, world, seed=3):
    return [Order(length, batch_size, accumulate, seed, rank, world) for rank in range(world)]


@pytest.mark.parametrize('length, batch_size, accumulate, world', SHAPES)
def test_processes_share_one_order(length, batch_size, accumulate, world):
    """Together they read each image of an epoch once, in the batches that one process would read."""
    [alone] = orders(length, batch_size, accumulate, 1)
    shares = [list(order.keys(1)) for order in orders(length, batch_size, accumulate, world)]
    whole = list(alone.keys(1))
    assert [len(batch) for batch in whole] == [
        min(batch_size, length - at) for at in range(0, length, batch_size)
    ]
    assert sorted(index for batch in whole for _, index, _ in batch) == list(range(length))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(parts)  # none is empty: every process must take part in every batch
        assert sorted(key for part in parts for key in part if key[2]) == sorted(batch)
        sizes = [sum(weight for _, _, weight in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('length, batch_size, accumulate, world', SHAPES)
def test_steps_by_counting(length, batch_size, accumulate, world):
    [order] = orders(length, batch_size, accumulate, 1)
    batches = list(order.keys(0))
    steps = [batches[at : at + accumulate] for at in range(0, len(batches), accumulate)]
    assert (order.batches, order.steps) == (len(batches), len(steps))
    for epoch in (0, 2):
        for i, step in enumerate(steps, start=epoch * len(steps)):
            assert order.step_batches(i) == len(step)
            assert order.step_size(i) == sum(len(batch) for batch in step)


def test_order_begins_at_any_step():
    [order] = orders(41, 4, 3, 1)
    for step in range(order.steps):
        assert list(order.keys(2, step)) == list(order.keys(2))[step * 3 :]


def test_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        return [key[1] for batch in Order(41, 4, 1, seed).keys(epoch) for key in batch]

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


DATA = ImageDataset('ab', [(np.full((8, 8), 10 * i, dtype=np.uint8), i % 2) for i in range(20)])
NOISE = v2.Compose(
    [
        v2.RandomAffine(20),
        v2.ColorJitter(0.5),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(p=0.5),
    ]
)


def read(workers, batch_size, epoch=0, seed=5, world=1):
    """Each image as augmentation made it, by its index."""
    found = {}
    for order in orders(len(DATA), batch_size, 1, world, seed):
        keys = list(order.keys(epoch))
        for batch, key in zip(load(DATA, {None: NOISE}, seed, iter(keys), workers, CPU), keys, strict=True):
            assert batch.labels.tolist() == [DATA.targets[index] for _, index, _ in key]
            found |= {index: image for (_, index, weight), image in zip(key, batch.images) if weight}
    return found


@pytest.mark.parametrize('workers, batch_size, world', [(2, 4, 1), (0, 7, 1), (2, 3, 2)])
def test_augmentation_depends_on_the_image_alone(workers, batch_size, world):
    expected, found = read(0, 4), read(workers, batch_size, world=world)
    assert len(found) == len(DATA)
    assert all(found[index].equal(expected[index]) for index in expected)


def test_augmentation_depends_on_seed_and_epoch():
    first = read(0, 4)
    for other in (read(0, 4, epoch=1), read(0, 4, seed=6)):
        assert sum(first[index].equal(other[index]) for index in first) <= 1


def test_augmentation_leaves_the_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    batches = load(DATA, {None: NOISE}, 5, [[(0, 1, 1)], [(0, 2, 1)]], 0, CPU)
    torch.manual_seed(0)
    iterator = iter(batches)
    next(iterator)
    torch.manual_seed(0)
    next(iterator)
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize(
    'entries',
    [
        [dict(type='RandomResizedCrop'), dict(type='ColorJitter', brightness=0.5)],
        [dict(type='Grayscale'), dict(type='Resize')],
        [
            dict(type='RandomCrop', size=6),
            dict(type='ToImage'),
            dict(type='ToDtype', dtype=torch.float32, scale=True),
            dict(type='RandomErasing', p=1.0),
        ],
    ],
    ids=['crop', 'gray', 'erased'],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_a_batch_is_normalised_as_each_image_is(entries, workers):
    whole = build_transform(entries, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.9, 'bicubic')
    keys = [[(1, i, 1) for i in range(start, start + 6)] for start in (2, 12)]
    for batch, listed in zip(load(DATA, {None: whole}, 5, keys, workers, CPU), keys, strict=True):
        assert batch.images.dtype == torch.float32 and batch.images.is_contiguous()
        for image, (epoch, index, _) in zip(batch.images, listed, strict=True):
            with seeded(5, 'image', epoch, index):
                assert image.equal(whole(DATA[index][0]))


def test_a_batch_is_pinned_as_loaders_pin(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor, *_: pinned.append(tensor) or tensor)
    batch = next(load(DATA, {None: v2.ToImage()}, 5, [[(0, 1, 1)]], 0, CPU))
    again = loader_pins(batch)
    assert [id(tensor) for tensor in pinned] == [
        id(tensor) for tensor in (batch.images, batch.labels, batch.weights)
    ]
    assert type(again) is type(batch)


@pytest.mark.parametrize('batches', [1, 2])
@pytest.mark.parametrize('keys', [list, iter])
def test_no_process_is_started_for_a_single_batch(keys, batches):
    def reader(image):
        return torch.full((3, 2, 2), float(os.getpid()), dtype=torch.float64)

    read = list(load(DATA, {None: reader}, 0, keys([[(0, i, 1)] for i in range(batches)]), 1, CPU))
    assert len(read) == batches
    assert all((batch.images == os.getpid()).all().item() == (batches == 1) for batch in read)


@pytest.mark.parametrize('workers', [0, 2])
def test_truncated_image(tmp_path, workers, capfd):
    """One message that names the file, from a worker process too, and no traceback of a worker."""
    path = tmp_path / 'cut.png'
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    dataset = ImageDataset('ab', [(np.zeros((8, 8), dtype=np.uint8), 0), (path, 1)])
    with pytest.raises(DataError) as error:
        list(load(dataset, {None: v2.ToImage()}, 0, [[(0, 0, 1)], [(0, 1, 1)]], workers, CPU))
    message = str(error.value)
    assert str(path) in message and 'Traceback' not in message and 'worker' not in message
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    'other, message',
    [
        (np.zeros((9, 8), np.uint8), 'images of several sizes.*Resize'),
        (torch.zeros(3, 8, 8), 'images of torch.uint8 and of torch.float32 .*one kind of image'),
    ],
    ids=['size', 'type'],
)
def test_images_that_make_no_batch_are_told(workers, other, message):
    """A float among bytes would become a byte image of 256 times its brightness."""
    keys = [[(0, 0, 1), (0, 1, 1)]] * 2
    data = Pairs([(np.zeros((8, 8), np.uint8), 0), (other, 1)])
    with pytest.raises(UserError, match=message) as error:
        list(load(data, {None: v2.ToImage()}, 0, keys, workers, CPU))
    assert 'Traceback' not in str(error.value)


class Pairs(list):
    """A user's dataset: a list of pairs."""

    classes = ['a', 'b']
