"""What a registry builds, and what it says where it cannot."""

import pytest
from torch import nn

from vet.errors import UnknownNameError, UserError
from vet.registry import (
    BACKBONES,
    DATASETS,
    HEADS,
    METRICS,
    OPTIMIZERS,
    TRANSFORMS,
    TUNERS,
    Registry,
    parameters_of,
)


@pytest.fixture
def registry():
    registry = Registry('toy', 'vet.errors')

    @registry.register_module()
    def plain(size, colour='red'):
        return size, colour

    @registry.register_module()
    def strict(size):
        return int(size)

    @registry.register_module()
    def anything(**options):
        return options

    return registry


@pytest.mark.parametrize(
    'registry, names',
    [
        (BACKBONES, {'timm', 'torchvision', 'DigitsViT'}),
        (TUNERS, {'LoRA', 'LinearProbe', 'Full', 'Partial', 'BitFit'}),
        (HEADS, {'Linear', 'ClassifierHead'}),
        (METRICS, {'accuracy', 'top5', 'vision-efficient-tuning-metric'}),
        (
            DATASETS,
            {
                'Digits',
                'ImageFolder',
                'CSV',
                'Flowers102',
                'CIFAR100',
                'CUB200',
                'NABirds',
                'StanfordCars',
                'StanfordDogs',
                'torchvision',
            },
        ),
        (TRANSFORMS, {'EvaluationCrop', 'RandomResizedCrop', 'RandAugment'}),
        (OPTIMIZERS, {'AdamW', 'SGD'}),
    ],
)
def test_a_registry_imports_its_own_folder(registry, names):
    assert names <= set(registry.names()) and registry.names() == sorted(registry.names())


@pytest.mark.parametrize(
    'registry, name, near',
    [
        (TUNERS, 'Lora', 'LoRA'),
        (BACKBONES, 'Timm', 'timm'),
        (DATASETS, 'Flower102', 'Flowers102'),
        (HEADS, 'linear', 'Linear'),
        (OPTIMIZERS, 'AdmW', 'AdamW'),
        (METRICS, 'acuracy', 'accuracy'),
        (TRANSFORMS, 'RandomCorp', 'RandomCrop'),
    ],
)
def test_unknown_name_tells_the_nearest(registry, name, near):
    with pytest.raises(
        UnknownNameError, match=f'unknown {registry.name} {name!r}. Did you mean .*{near!r}.*--import MODULE'
    ):
        registry.find(name)


@pytest.mark.parametrize('name', [None, 3, ['LoRA'], {}])
def test_name_that_is_no_text(name):
    with pytest.raises(UnknownNameError, match='unknown tuner'):
        TUNERS.find(name)


@pytest.mark.parametrize('given', [None, 'LoRA', {}, dict(rank=3), ['LoRA']])
def test_entry_without_type(given):
    with pytest.raises(UserError, match='a tuner is given as a dict with a "type"'):
        TUNERS.build(given)


def test_arguments_are_checked(registry):
    assert registry.build(dict(type='plain', size=3)) == (3, 'red')
    with pytest.raises(UnknownNameError, match="option of toy 'plain' 'color'. Did you mean 'colour'"):
        registry.build(dict(type='plain', size=3, color='blue'))
    with pytest.raises(UserError, match="toy 'plain' needs 'size'; given: {'colour': 'blue'}"):
        registry.build(dict(type='plain', colour='blue'))


def test_what_is_offered_is_taken_where_it_is_wanted_and_not_given(registry):
    assert registry.build(dict(type='plain'), size=1, unwanted=2) == (1, 'red')
    assert registry.build(dict(type='plain', size=3), size=1) == (3, 'red')
    assert registry.build(dict(type='anything', a=1), a=2, b=3) == dict(a=1, b=3)


def test_an_argument_that_the_plugin_refuses(registry):
    with pytest.raises(
        UserError, match="the toy 'strict' cannot be made from {'size': 'abc'}: invalid literal"
    ):
        registry.build(dict(type='strict', size='abc'))
    with pytest.raises(
        UserError, match="dropout is 'x'; it must be a number at least 0 and below 1 .tuner 'LoRA'"
    ):
        TUNERS.build(dict(type='LoRA', dropout='x'))


def test_building_leaves_the_entry_alone(registry):
    entry = dict(type='plain', size=3)
    registry.build(entry)
    assert entry == dict(type='plain', size=3)


@pytest.mark.parametrize(
    'entry',
    [
        dict(type='ImageFolder', path='a' * 5000),
        dict(type='ImageFolder', path='a\0b'),
        dict(type='CSV', file='a' * 5000),
        dict(type='MultiTask', tasks=dict(low='.*')),
        dict(type='MultiTask', tasks=dict(low=3)),
    ],
)
def test_a_path_that_no_disk_takes_and_a_task_that_is_no_dataset(entry, tmp_path):
    with pytest.raises(UserError, match='cannot be made from|tasks.low is|there is no'):
        DATASETS.build(entry, root=tmp_path)


@pytest.mark.parametrize('init', [nn.Module.__init__, lambda self, *args, **kwargs: None])
def test_a_class_without_an_init_takes_no_arguments(init, monkeypatch):
    monkeypatch.setattr(nn.Module, '__init__', init)  # torch.compile replaces it

    class Bare:
        pass

    assert parameters_of(Bare) == {}
    assert list(parameters_of(nn.Linear)) == ['in_features', 'out_features', 'bias', 'device', 'dtype']
    assert parameters_of(nn.Module) == {}
