"""train.sampler: the images of an epoch, for any number of processes and after any break."""

from collections import Counter

import pytest
import torch

from tests.engine.runs import SmallDigits, ended, ended_after_a_break, small
from vet.datasets.base import targets_of
from vet.engine.feed.batches import Order
from vet.engine.feed.sampling import drawn, samplers_of
from vet.errors import UserError
from vet.registry import SAMPLERS
from vet.samplers.base import Sampler
from vet.samplers.per_class import PerClass


def drawn_images(entry, data, epochs=20):
    [sampler] = samplers_of(entry, data)
    return [
        index
        for epoch in range(epochs)
        for index in drawn(sampler, epoch, torch.Generator().manual_seed(epoch), len(data))
    ]


@pytest.fixture(scope='module')
def unequal():
    """Digits of which a class has a tenth of the images."""
    data = SmallDigits('train')
    targets = targets_of(data)
    kept = [i for i, label in enumerate(targets) if label != 2 or i % 10 == 0]
    data.samples = [data.samples[i] for i in kept]
    data.targets = [targets[i] for i in kept]
    return data


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_class_balanced_draws_in_proportion_to_the_power(unequal, power):
    counts = Counter(targets_of(unequal))
    found = Counter(
        targets_of(unequal)[i] for i in drawn_images(dict(type='ClassBalanced', power=power), unequal)
    )
    total = sum(count ** (1 - power) for count in counts.values())
    for label, count in counts.items():
        expected = count ** (1 - power) / total
        assert found[label] / found.total() == pytest.approx(expected, abs=0.03)


def test_weights_of_classes_and_of_images(unequal):
    names = list(unequal.classes)
    weights = {names[0]: 0.0, names[1]: 3.0}
    counts = Counter(
        targets_of(unequal)[i] for i in drawn_images(dict(type='Weighted', weights=weights), unequal)
    )
    assert (
        counts[0] == 0
        and counts[1] > 2 * counts[3] * Counter(targets_of(unequal))[1] / (Counter(targets_of(unequal))[3])
    )
    alone = [0.0] * len(unequal)
    alone[5] = 1.0
    assert set(drawn_images(dict(type='Weighted', weights=alone), unequal, 1)) == {5}


def test_repeated_augmentation_gives_copies_in_a_row(unequal):
    order = drawn_images(dict(type='RepeatedAugmentation', repeats=3), unequal, 1)
    assert len(order) == len(unequal)
    whole = order[: len(order) // 3 * 3]
    assert all(len(set(whole[i : i + 3])) == 1 for i in range(0, len(whole), 3))
    assert len(set(order)) == -(-len(unequal) // 3)


@pytest.mark.parametrize('world', [2, 3])
def test_any_number_of_processes_sees_the_same_batches(unequal, world):
    samplers = samplers_of(dict(type='ClassBalanced'), unequal)

    def order(rank, processes):
        return Order(len(unequal), 12, 0, 1, rank, processes, samplers=samplers)

    alone = list(order(0, 1).keys(3))
    parts = [list(order(rank, world).keys(3)) for rank in range(world)]
    for number, batch in enumerate(alone):
        shared = [key for part in parts for key in part[number] if key[2]]
        assert sorted(shared) == sorted(batch)


def test_copies_of_an_image_are_augmented_each_in_another_way(unequal):
    samplers = samplers_of(dict(type='RepeatedAugmentation', repeats=3), unequal)
    [first, *_] = Order(len(unequal), 12, 0, 1, 0, 1, samplers=samplers).keys(0)
    assert len({key[1] for key in first}) == 4 and len({key[:2] for key in first}) == 12


@pytest.mark.slow
def test_a_broken_run_goes_on_within_an_epoch(tmp_path):
    options = {
        'train.sampler': dict(type='ClassBalanced'),
        'train.checkpoint.every_steps': 1,
        'train.transform': [dict(type='RandomAffine', degrees=20)],
    }
    whole = ended(small(tmp_path / 'whole', **options))
    assert ended_after_a_break(lambda resume: small(tmp_path / 'broken', resume, **options), 6) == whole
    plain = ended(small(tmp_path / 'plain', **{**options, 'train.sampler': None}))
    assert plain['tensors'] != whole['tensors']


class Short(Sampler):
    def draw(self, epoch, generator):
        return [0]


class Outside(Sampler):
    def draw(self, epoch, generator):
        return [self.images] * self.images


class Failing(Sampler):
    def draw(self, epoch, generator):
        return 1 / 0


@pytest.mark.parametrize(
    'kind, words',
    [
        (Short, 'draws 1 images, but len'),
        (Outside, 'training images have the numbers 0 to'),
        (Failing, 'fails at epoch 0: ZeroDivisionError'),
    ],
)
def test_a_users_sampler_that_is_wrong_is_named(monkeypatch, tmp_path, kind, words):
    monkeypatch.setitem(SAMPLERS.module_dict, kind.__name__, kind)
    with pytest.raises(UserError, match=f"the sampler '{kind.__name__}' .*{words}"):
        small(tmp_path / 'run', **{'train.sampler': dict(type=kind.__name__)}).train()


@pytest.mark.parametrize(
    'entry, words',
    [
        (dict(type='Weighted', weights=[1.0, 2.0]), 'has 2 weights. Give one for each of the'),
        (
            dict(type='Weighted', weights=dict(nothing=1.0)),
            "unknown class in train.sampler.weights 'nothing'",
        ),
        (dict(type='Weighted', weights=[0.0] * 5), 'the weight 0, so that no image can be drawn'),
        (dict(type='ClassBalanced', power=2), 'power'),
        (dict(type='Balanced'), "Did you mean 'ClassBalanced'"),
    ],
)
def test_entries_that_do_not_fit(tmp_path, entry, words):
    with pytest.raises(UserError, match=words):
        small(tmp_path / 'run', **{'train.sampler': entry}).train()


def test_a_batch_has_several_images_of_each_class(unequal):
    order = drawn_images(dict(type='PerClass', images_per_class=4), unequal, epochs=1)
    assert len(order) == len(unequal)
    targets = targets_of(unequal)
    blocks = [order[i : i + 4] for i in range(0, len(order) - 3, 4)]
    assert all(len({targets[i] for i in block}) == 1 for block in blocks)
    many = Counter(targets)
    assert all(len(set(block)) == min(4, many[targets[block[0]]]) for block in blocks)
    first = [targets[block[0]] for block in blocks[: len(many)]]
    assert sorted(first) == sorted(many)  # each class once, before a class comes again
    assert order == drawn_images(dict(type='PerClass', images_per_class=4), unequal, epochs=1)


def test_images_of_a_large_class_take_turns():
    sampler = PerClass(20, lambda: [index % 2 for index in range(20)], 'one class', images_per_class=2)
    drawn = [sampler.draw(epoch, torch.Generator().manual_seed(epoch))[:4] for epoch in range(40)]
    assert {image for images in drawn for image in images} == set(range(20))
    assert all(len(set(images)) == 4 for images in drawn)
