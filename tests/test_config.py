"""Config files and the checks of what stands in them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from vet import build_trainer
from vet.builders import modified
from vet.config import load_config, read_settings
from vet.errors import UnknownNameError, UserError
from vet.mmengine_parts import Config
from vet.registry import TUNERS

CONFIGS = Path(__file__).parents[1] / 'configs'


def config(**sections):
    return {
        'model': dict(backbone=dict(type='DigitsViT')),
        'dataset': dict(train=dict(type='Digits')),
        **sections,
    }


def changed(**options):
    return read_settings(modified(Config(config()), None, options))


def test_defaults_are_complete_and_can_be_saved():
    settings = read_settings(config())
    assert settings.model.tuners == [dict(type='LinearProbe')] and settings.dataset.test is None
    assert settings.evaluation.metrics is None and settings.seed == 0
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    assert read_settings(settings.to_dict()) == settings


def test_what_is_read_is_a_copy():
    given = config()
    settings = read_settings(given)
    settings.model.backbone['type'] = 'other'
    assert given['model']['backbone'] == dict(type='DigitsViT')
    assert read_settings(config()).train.lr_scheduler is not read_settings(config()).train.lr_scheduler


@pytest.mark.parametrize(
    'key, near',
    [
        ('model.finetun', 'finetune'),
        ('model.tuner', 'tuners'),
        ('dataset.tets', 'test'),
        ('train.max_epoch', 'max_epochs'),
        ('train.lr_scheduler.tmax', 'T_max'),
        ('train.dataloader.batch_size', 'batch_size_per_gpu'),
        ('train.checkpoint.keeps', 'keep'),
        ('evaluation.metric', 'metrics'),
        ('evaluation.dataloader.workers', 'workers_per_gpu'),
        ('model.backbone.loral_length', 'lora_length'),
    ],
)
def test_unknown_key_in_a_section(key, near):
    with pytest.raises(
        UnknownNameError,
        match=f'{key.rpartition(".")[0]}.*{key.rpartition(".")[2]!r}.*Did you mean .*{near!r}',
    ):
        changed(**{key: 3})


@pytest.mark.parametrize('name', ['evaluations', 'datasets', 'trian', 'models', 'sed', 'seeds'])
def test_top_level_name_near_a_section(name):
    with pytest.raises(UnknownNameError, match=f'unknown section {name!r}. Did you mean'):
        read_settings(config(**{name: dict()}))


def test_cuda_graphs_take_one_batch_a_step():
    with pytest.raises(
        UserError,
        match="train.compile is 'reduce-overhead', .*train.accumulate is 2. Set train.accumulate to 1",
    ):
        changed(**{'train.compile': 'reduce-overhead', 'train.accumulate': 2})
    assert changed(**{'train.compile': True, 'train.accumulate': 2}).train.accumulate == 2


def test_helper_variables_are_allowed():
    settings = read_settings(
        config(
            num_images=3,
            my_paths=[Path('a')],
            helper=object(),
            work_dir='x',
            default_scope='vet',
            custom_imports=dict(imports=[]),
        )
    )
    assert settings == read_settings(config())


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('train.max_epochs', 'abc', "train.max_epochs is 'abc'; it must be a whole number"),
        ('train.max_epochs', 1.5, 'a whole number'),
        ('train.max_epochs', True, 'a whole number'),
        ('train.compile', 1, 'True or False or .default.'),
        ('train.compile', 'fast', "unknown train.compile 'fast'.*reduce-overhead"),
        ('train.ema', 'x', 'a number or None'),
        ('seed', None, 'seed is None'),
        ('model.tuners', 'LoRA', "model.tuners is 'LoRA'; it must be a list"),
        ('model.tuners', ['LoRA'], 'must be a list'),
        ('model.backbone', 'DigitsViT', 'model.backbone is \'DigitsViT\'; it must be a dict with a "type"'),
        (
            'model',
            3,
            'model is 3; it must be a dict with the keys backbone, tuners, head, objective, tasks, shared, finetune',
        ),
        ('train.lr_scheduler', 'Cosine', 'must be a dict with the keys type, T_max'),
        ('evaluation.metrics', 3, 'a text or a list'),
        ('train.precision', 'fp16', "unknown train.precision 'fp16'.*bf16, fp32, fp8"),
        ('evaluation.select', 'first', 'Allowed: best, last'),
        ('train.lr_scheduler.type', 'Cosine', 'CosineAnnealingLR'),
        ('model.head.weights', {1, 2}, 'model.head.weights is .*Register your object'),
        ('dataset.train.loader', open, 'dataset.train.loader is <built-in'),
    ],
)
def test_wrong_type_or_choice(key, value, message):
    with pytest.raises(UserError, match=message):
        changed(**{key: value})


@pytest.mark.parametrize('short', [4, [4, 0]])
@pytest.mark.parametrize('tuners', ['LoRA', ['LoRA'], dict(type='LoRA')])
def test_tuners_that_are_no_list_of_dicts_beside_a_short_form(tuners, short):
    with pytest.raises(UserError, match='model.tuners is .* it must be a list'):
        read_settings(config(model=dict(backbone=dict(type='DigitsViT', lora_length=short), tuners=tuners)))


@pytest.mark.parametrize(
    'key, value, allowed',
    [
        ('train.max_epochs', -1, 'at least 0'),
        ('train.accumulate', 0, 'at least 1'),
        ('train.log_every', 0, 'at least 1'),
        ('train.dataloader.batch_size_per_gpu', 0, 'at least 1'),
        ('train.dataloader.workers_per_gpu', -1, 'at least 0'),
        ('evaluation.dataloader.batch_size_per_gpu', 0, 'at least 1'),
        ('evaluation.dataloader.workers_per_gpu', -2, 'at least 0'),
        ('train.lr_scheduler.T_max', 0, 'at least 1'),
        ('train.lr_scheduler.warmup_epochs', -1, 'at least 0'),
        ('train.lr_scheduler.eta_min', 2, 'at least 0 and at most 1'),
        ('train.label_smoothing', 1, 'at least 0 and below 1'),
        ('train.mixup', -0.1, 'at least 0'),
        ('train.cutmix', 1e6, 'at least 0 and at most 1,000'),
        ('train.clip_norm', 0, 'at least 1e-08'),
        ('train.head_lr', -1, 'at least 1e-12'),
        ('train.ema', 1, 'above 0 and below 1'),
        ('train.checkpoint.keep', 0, 'at least 1'),
        ('train.checkpoint.every_steps', 0, 'at least 1'),
        ('train.checkpoint.every_epochs', 0, 'at least 1'),
        ('train.early_stop', 0, 'at least 1'),
        ('evaluation.holdout', 1, 'above 0 and below 1'),
        ('evaluation.every', 0, 'at least 1'),
    ],
)
def test_out_of_range(key, value, allowed):
    with pytest.raises(UserError, match=f'^{key} is {value}; it must be (a .*)?{allowed}'):
        changed(**{key: value})


@pytest.mark.parametrize('key', ['train.mixup', 'train.optimizer.lr', 'model.tuners', 'seed'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 10**400])
def test_numbers_are_finite(key, value):
    with pytest.raises(UserError, match=f'{key}.* is .*; a number in a config is finite'):
        changed(**{key: [dict(type='LoRA', alpha=value)] if key == 'model.tuners' else value})


def test_a_deep_config_is_refused(tmp_path):
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UserError):
        changed(**{'train.optimizer': dict(type='SGD', lr=deep)})
    (tmp_path / 'deep.json').write_text('{"model": ' + '[' * 100_000 + ']' * 100_000 + '}')
    with pytest.raises(UserError, match='cannot be read'):
        load_config(tmp_path / 'deep.json')
    with pytest.raises(UserError, match='nested more than 40 deep'):
        read_settings(config(train=dict(optimizer=dict(type='SGD', betas=json.loads('[' * 60 + ']' * 60)))))


def test_yaml_runs_no_code(tmp_path):
    mark = tmp_path / 'ran'
    (tmp_path / 'bad.yaml').write_text(f'model: !!python/object/apply:os.mkdir ["{mark}"]\n')
    (tmp_path / 'child.yaml').write_text('_base_: [bad.yaml]\nseed: 1\n')
    (tmp_path / 'child.py').write_text("_base_ = ['bad.yaml']\n")
    for name in ('bad.yaml', 'child.yaml', 'child.py'):
        with pytest.raises(
            UserError, match='cannot be read: .*could not determine a constructor for the tag'
        ):
            load_config(tmp_path / name)
    assert not mark.exists()


def test_aliases_of_yaml_do_not_fill_the_memory(tmp_path):
    bomb = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    bomb += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]
    merge = ['a0: &a0 {x: 1, y: 2}']
    merge += [f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 10)}]}}' for i in range(1, 12)]
    for name, lines in (('list', bomb), ('merge', merge), ('itself', ['a: &a [*a]'])):
        (tmp_path / f'{name}.yaml').write_text('\n'.join(lines))
        (tmp_path / f'{name}.py').write_text(f"_base_ = ['{name}.yaml']\n")
        for file in (f'{name}.yaml', f'{name}.py'):
            with pytest.raises(
                UserError, match=rf'{name}.* cannot be read: .*aliases .* more than 1,000,000'
            ):
                load_config(tmp_path / file)
    (tmp_path / 'good.yaml').write_text(
        'model: {backbone: {type: DigitsViT}}\ndataset: {train: &data {type: Digits}, val: *data}\n'
    )
    settings = read_settings(load_config(tmp_path / 'good.yaml'))
    assert settings.dataset.train == settings.dataset.val == dict(type='Digits')


def test_lists_that_hold_one_another_many_times_are_refused():
    many = [1] * 10
    for _ in range(12):
        many = [many] * 10
    with pytest.raises(UserError, match='more than 500,000 values'):
        read_settings(config(train=dict(optimizer=dict(type='SGD', lr=many))))


def test_a_path_that_is_not_unicode_is_refused():
    with pytest.raises(
        UserError, match=r"dataset.train.path has '/data/\\udcff', .*rename the file or folder"
    ):
        changed(**{'dataset.train.path': '/data/\udcff'})


def test_numbers_come_through_as_they_were_given():
    given = [0.1, 1 / 3, 5e-324 * 2**1000, 1.7976931348623157e308, -0.0, 3, 10**300, 2**63]
    read = changed(**{'dataset.train.digits': given}).dataset.train['digits']
    assert list(map(repr, read)) == list(map(repr, given))
    settings = changed(**{'train.mixup': 1, 'train.lr_scheduler.warmup_epochs': 2})
    assert repr(settings.train.mixup) == '1.0' and repr(settings.train.lr_scheduler.warmup_epochs) == '2.0'


@pytest.mark.parametrize(
    'key, message',
    [
        ('model.shared', "^model.shared is '[(]', not a regular expression"),
        ('train.stages', "^train.stages\\[0\\].train is '\\(', not a regular expression"),
    ],
)
def test_a_pattern_is_checked_where_it_stands(key, message):
    with pytest.raises(UserError, match=message):
        changed(**{key: [dict(epochs=1, train='(')] if key == 'train.stages' else '('})


@pytest.mark.parametrize(
    'value, message',
    [
        (3, '^train.stages is 3; it must be a list of dicts with the keys epochs, train, optimizer, head_lr'),
        ([3], r'^train.stages\[0\] is 3; it must be a dict with the keys epochs, train, optimizer, head_lr'),
        ([dict(epochs=1), dict(epochs=0)], r'^train.stages\[1\].epochs is 0; it must be at least 1'),
        ([dict(epoch=1)], r"^unknown key in train.stages\[0\] 'epoch'. Did you mean 'epochs'"),
        ([{}], r'^train.stages\[0\] lacks epochs; its keys are epochs, train, optimizer, head_lr'),
    ],
)
def test_an_error_within_a_list_is_named(value, message):
    with pytest.raises(UserError, match=message):
        changed(**{'train.stages': value})


def test_missing_sections():
    with pytest.raises(
        UserError,
        match='the config lacks model, dataset; its keys are model, dataset, train, evaluation, '
        'custom_hooks, seed',
    ):
        read_settings({})


def test_a_section_given_in_part_keeps_its_other_defaults():
    settings = changed(**{'evaluation.dataloader': dict(workers_per_gpu=0), 'train.optimizer': dict(lr=1e-2)})
    assert settings.evaluation.dataloader.batch_size_per_gpu == 128
    assert settings.train.optimizer == dict(type='AdamW', lr=1e-2, weight_decay=1e-4)
    assert changed(**{'train.optimizer': dict(type='SGD')}).train.optimizer == dict(type='SGD')
    assert changed(**{'model.head': dict(dropout=0.5)}).model.head == dict(type='Linear', dropout=0.5)


def test_yaml_numbers_without_a_point_are_numbers():
    assert changed(**{'train.optimizer.lr': '1e-3'}).train.optimizer['lr'] == 1e-3


def test_t_max_follows_max_epochs():
    assert changed(**{'train.max_epochs': 7}).train.lr_scheduler.T_max == 7
    assert changed(**{'train.max_epochs': 7, 'train.lr_scheduler.T_max': 9}).train.lr_scheduler.T_max == 9
    assert changed(**{'train.max_epochs': 0}).train.lr_scheduler.T_max == 1  # a folder holds an allowed value
    complete = config(train=dict(max_epochs=7, lr_scheduler=dict(T_max=7)))  # as a model folder has it
    assert (
        read_settings(modified(Config(complete), None, {'train.max_epochs': 9})).train.lr_scheduler.T_max == 9
    )
    assert (
        read_settings(modified(Config(complete), None, {'train.stages': [dict(epochs=3)]})).train.max_epochs
        == 3
    )


def test_a_warmup_is_no_longer_than_the_run():
    for options in (
        {'train.lr_scheduler.warmup_epochs': 21},
        {'train.max_epochs': 3, 'train.lr_scheduler.warmup_epochs': 4},
        {'train.stages': [dict(epochs=2)], 'train.lr_scheduler.warmup_epochs': 3},
    ):
        with pytest.raises(
            UserError, match='warmup_epochs is .*: the learning rate would never reach its value'
        ):
            changed(**options)
    given = Config(config(train=dict(max_epochs=30, lr_scheduler=dict(warmup_epochs=3))))
    with pytest.warns(
        UserWarning,
        match='warmup_epochs is 3, more than the 2 epochs of this run. The warmup is shortened to 0.2',
    ):
        assert read_settings(
            modified(given, None, {'train.max_epochs': 2})
        ).train.lr_scheduler.warmup_epochs == pytest.approx(0.2)


def test_no_epoch_trains_with_a_learning_rate_of_zero():
    with pytest.raises(
        UserError,
        match='T_max is 5, but train.max_epochs is 7: the epochs after 5 would train with a learning rate of 0',
    ):
        changed(**{'train.max_epochs': 7, 'train.lr_scheduler.T_max': 5})
    assert (
        changed(
            **{'train.max_epochs': 7, 'train.lr_scheduler': dict(T_max=5, eta_min=0.1)}
        ).train.lr_scheduler.T_max
        == 5
    )


@pytest.mark.parametrize(
    'option, meant',
    [
        ('max_epochs', 'train.max_epochs'),
        ('epochs', 'train.max_epochs'),
        ('optimizer.lr', 'train.optimizer.lr'),
        ('lr', 'train.optimizer.lr'),
        ('learning_rate', 'train.optimizer.lr'),
        ('batch_size', 'train.dataloader.batch_size_per_gpu'),
        ('tuners', 'model.tuners'),
        ('lora_length', 'model.backbone.lora_length'),
        ('backbone.checkpoint', 'model.backbone.checkpoint'),
        ('num_classes', 'model.head.num_classes'),
        ('train.lr', 'train.optimizer.lr'),
        ('train.batch_size', 'train.dataloader.batch_size_per_gpu'),
        ('metrics', 'evaluation.metrics'),
    ],
)
def test_an_option_that_changes_nothing_is_refused(option, meant):
    with pytest.raises(UnknownNameError, match=f'Did you mean .*{meant!r}'):
        changed(**{option: 1})


@pytest.mark.parametrize(
    'key, value',
    [
        ('train.optimizer', {}),
        ('model.tuners', {}),
        ('model.tuners', dict(type='LoRA')),
        ('model.backbone', {}),
    ],
)
def test_an_empty_dict_and_a_dict_in_place_of_a_list_are_refused(key, value):
    given = config(
        train=dict(optimizer=dict(type='SGD')),
        model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='BitFit')]),
    )
    with pytest.raises(UserError, match=f'the option {key}=.* would change nothing, or has no place'):
        modified(Config(given), None, {key: value})


def test_no_option_or_function_sets_a_helper_variable():
    for name in ('foo', 'helper', 'custom_imports'):
        with pytest.raises(UnknownNameError, match=f'{name!r}.* The option would change nothing'):
            read_settings(modified(Config(config(helper=1)), None, {name: 3}))

    def modify(config):
        config.max_epochs = 3

    for given in (config(), config(max_epochs=2)):
        with pytest.raises(
            UnknownNameError, match="section that cfg_modify_fn sets 'max_epochs'.*'train.max_epochs'"
        ):
            modified(Config(given), modify, None)
    assert modified(Config(config(helper=1)), lambda config: dict(config), {'seed': 2}).helper == 1


def test_a_helper_variable_that_looks_like_a_setting_is_used_in_its_file(tmp_path):
    text = "model = dict(backbone=dict(type='DigitsViT'))\ndataset = dict(train=dict(type='Digits'))\n"
    for name, value in (('max_epochs', 3), ('lr', 0.1), ('batch_size', 8), ('optimizer', dict(type='SGD'))):
        (tmp_path / 'unused.py').write_text(f'{name} = {value}\n{text}')
        with pytest.raises(
            UnknownNameError, match=f'section {name!r}. Did you mean .*train.*would change nothing'
        ):
            read_settings(load_config(tmp_path / 'unused.py'))
    (tmp_path / 'used.py').write_text(f'max_epochs = 3\n{text}train = dict(max_epochs=max_epochs)\n')
    assert read_settings(load_config(tmp_path / 'used.py')).train.max_epochs == 3
    (tmp_path / 'child.py').write_text("_base_ = ['used.py']\nseed = {{_base_.max_epochs}}\n")
    assert read_settings(modified(load_config(tmp_path / 'child.py'), None, {'train.log_every': 1})).seed == 3
    (tmp_path / 'a.yaml').write_text(
        'model: {backbone: {type: DigitsViT}}\ndataset: {train: {type: Digits}}\nmax_epochs: 3\n'
    )
    with pytest.raises(UnknownNameError, match="'train.max_epochs'"):
        read_settings(load_config(tmp_path / 'a.yaml'))


def test_paths_and_ranges_become_what_json_holds():
    settings = changed(**{'dataset.train.path': Path('a/b'), 'dataset.train.digits': range(2)})
    assert settings.dataset.train == dict(type='Digits', path='a/b', digits=[0, 1])


# The short forms ---------------------------------------------------------------------------------------------------


LENGTH, TUNERS_OPTION = 'model.backbone.lora_length', 'model.tuners'


def tuners_of(config, **options):
    return read_settings(modified(Config(config), None, options)).model.tuners


def with_tuners(*tuners, **short):
    return config(model=dict(backbone=dict(type='DigitsViT', **short), tuners=list(tuners)))


def test_lora_length_is_short_for_an_entry():
    assert tuners_of(with_tuners(lora_length=4)) == [dict(type='LoRA', rank=4)]
    assert tuners_of(with_tuners(dict(type='BitFit'), lora_length=4)) == [
        dict(type='BitFit'),
        dict(type='LoRA', rank=4),
    ]
    assert tuners_of(config(model=dict(backbone=dict(type='DigitsViT', lora_length=4))))[-1] == dict(
        type='LoRA', rank=4
    )
    assert 'lora_length' not in read_settings(with_tuners(lora_length=4)).model.backbone


def test_a_lora_length_without_any_number_is_refused():
    [entry] = tuners_of(with_tuners(lora_length=8), **{LENGTH: []})
    with pytest.raises(UserError, match=r'rank is \[\]; it must be not empty'):
        TUNERS.build(entry)
    assert tuners_of(with_tuners(lora_length=8), **{LENGTH: 0}) == []


def test_lora_length_given_last_replaces_the_entrys_rank():
    entry = dict(type='LoRA', rank=2, at='mlp.fc1', alpha=8)
    given = with_tuners(entry, dict(type='BitFit'))
    assert tuners_of(given, **{LENGTH: [4, 0, 4, 0, 0, 0]}) == [
        dict(entry, rank=[4, 0, 4, 0, 0, 0]),
        dict(type='BitFit'),
    ]
    assert given['model']['tuners'][0]['rank'] == 2


def test_tuners_given_last_replace_the_short_form():
    probe, lora = dict(type='LinearProbe'), dict(type='LoRA', rank=2)
    assert tuners_of(with_tuners(lora_length=8), **{TUNERS_OPTION: [probe]}) == [probe]
    assert tuners_of(with_tuners(lora_length=8), **{TUNERS_OPTION: [lora]}) == [lora]
    assert tuners_of(with_tuners(lora_length=8), **{TUNERS_OPTION: []}) == []
    assert tuners_of(with_tuners(lora_length=8), **{TUNERS_OPTION: [lora], LENGTH: 4}) == [
        dict(type='LoRA', rank=4)
    ]
    assert tuners_of(with_tuners(lora_length=8), **{LENGTH: 4, TUNERS_OPTION: [probe]}) == [probe]
    assert tuners_of(with_tuners(lora_length=8), **{'model.tuners.0.alpha': 2}) == [
        dict(type='LoRA', rank=8, alpha=2)
    ]

    def modify(config):
        config.model.tuners = [probe]

    assert read_settings(modified(Config(with_tuners(lora_length=8)), modify, None)).model.tuners == [probe]


@pytest.mark.parametrize('tuner', [dict(type='LinearProbe'), dict(type='LoRA', rank=2)])
def test_a_file_gives_tuners_or_a_short_form(tmp_path, tuner):
    (tmp_path / 'base.py').write_text(
        "model = dict(backbone=dict(type='DigitsViT', lora_length=8))\ndataset = dict(train=dict(type='Digits'))\n"
    )
    for changes, parts in (
        (f"_base_ = ['base.py']\nmodel = dict(tuners=[{tuner}])\n", [tuner]),
        (f"_base_ = ['base.py']\nmodel = dict(backbone=dict(lora_length=None), tuners=[{tuner}])\n", None),
    ):
        (tmp_path / 'own.py').write_text(changes)
        if parts is None:
            assert read_settings(load_config(tmp_path / 'own.py')).model.tuners == [tuner]
            continue
        for options in (None, {'train.max_epochs': 1}):
            with pytest.raises(
                UserError, match=r'model.backbone.lora_length is 8, .*Give one of them: .*lora_length=None'
            ):
                read_settings(modified(load_config(tmp_path / 'own.py'), None, options))


def test_both_given_at_once_must_not_contradict():
    with pytest.raises(UserError, match='lora_length is 8, which is short for'):
        read_settings(with_tuners(dict(type='LoRA', rank=2), lora_length=8))
    assert tuners_of(with_tuners(dict(type='LoRA', r=8), lora_length=8)) == [dict(type='LoRA', rank=8)]


@pytest.mark.parametrize('length', ['lora_length', 'adapter_length', 'prefix_length', 'prompt_length'])
def test_every_short_form_follows_the_same_rule(length):
    entries = tuners_of(with_tuners(**{length: 3}))
    assert len(entries) == 1 and 3 in entries[0].values()
    assert tuners_of(with_tuners(**{length: 3}), **{TUNERS_OPTION: [dict(type='BitFit')]}) == [
        dict(type='BitFit')
    ]


def test_a_short_form_in_a_task_is_refused():
    given = with_tuners()
    given['model']['tasks'] = dict(low=dict(backbone=dict(lora_length=4)))
    with pytest.raises(
        UserError, match='model.tasks.low.backbone has lora_length, but the tuners are the same for all tasks'
    ):
        read_settings(given)


@pytest.mark.parametrize('nothing', [0, [0] * 6])
def test_all_zero_removes_the_entry(nothing):
    assert tuners_of(with_tuners(dict(type='LoRA', rank=2)), **{LENGTH: nothing}) == []
    assert tuners_of(with_tuners(dict(type='BitFit'), lora_length=nothing)) == [dict(type='BitFit')]
    # not given
    assert tuners_of(with_tuners(dict(type='LoRA', rank=2), lora_length=None)) == [dict(type='LoRA', rank=2)]


def test_short_form_is_expanded_after_modify_and_options():
    def modify(config):
        config.model.backbone.lora_length = 3
        return config

    given = with_tuners(lora_length=1)
    assert read_settings(modified(Config(given), modify, None)).model.tuners == [dict(type='LoRA', rank=3)]
    both = modified(Config(given), modify, {'model.backbone.lora_length': 5})
    assert read_settings(both).model.tuners == [dict(type='LoRA', rank=5)]


def test_modify_may_return_nothing():
    config = modified(Config(with_tuners()), lambda c: c.model.update(finetune=False), None)
    assert read_settings(config).model.finetune is False


def test_unknown_short_form():
    with pytest.raises(UnknownNameError, match=r"short form in model.backbone 'loro_length'.*lora_length"):
        read_settings(with_tuners(loro_length=4))


# Files -------------------------------------------------------------------------------------------------------------


def test_every_config_of_the_project_is_complete():
    found = sorted(path for path in CONFIGS.glob('*.py'))
    assert found
    for path in found:
        assert read_settings(load_config(path)), path


def test_base_is_inherited_and_overridden(tmp_path):
    (tmp_path / 'base.py').write_text(
        "model = dict(backbone=dict(type='DigitsViT', lora_length=8), head=dict(type='Linear'))\n"
        "dataset = dict(train=dict(type='Digits', digits=[1, 2]))\n"
    )
    (tmp_path / 'own.py').write_text(
        "_base_ = ['base.py']\nrank = 2\nmodel = dict(backbone=dict(lora_length=rank))\n"
        "dataset = dict(train=dict(_delete_=True, type='Digits'))\n"
    )
    settings = read_settings(load_config(tmp_path / 'own.py'))
    assert settings.model.backbone == dict(type='DigitsViT') and settings.model.tuners == [
        dict(type='LoRA', rank=2)
    ]
    assert settings.dataset.train == dict(type='Digits')


def test_yaml_and_json(tmp_path):
    (tmp_path / 'a.yaml').write_text(
        'model: {backbone: {type: DigitsViT, lora_length: 2}}\ndataset: {train: {type: Digits}}\n'
        'train: {max_epochs: 3, head_lr: 0.01}\n'
    )
    (tmp_path / 'a.json').write_text(json.dumps(config(train=dict(max_epochs=3))))
    assert read_settings(load_config(tmp_path / 'a.yaml')).train.head_lr == 0.01
    assert read_settings(load_config(str(tmp_path / 'a.json'))).train.max_epochs == 3


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('a.py', 'model = (', 'cannot be read'),
        ('b.py', 'raise RuntimeError("mine")', 'RuntimeError: mine'),
        ('c.yaml', 'model: [', 'cannot be read'),
        ('d.json', '{', 'cannot be read'),
        ('e.txt', 'x', 'cannot be read'),
        ('f.py', "_base_ = ['missing.py']", 'missing.py'),
        ('g.py', "custom_imports = dict(imports=['no_such_module_of_mine'])", 'no_such_module_of_mine'),
        ('h.py', "custom_imports = ['json']", 'cannot be read'),
    ],
)
def test_config_file_that_cannot_be_read(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / name)


@pytest.mark.parametrize('value', ['(i for i in ())', 'open(0, closefd=False)', 'lambda: 1'])
def test_a_value_that_cannot_be_copied_is_named(tmp_path, value):
    (tmp_path / 'a.py').write_text(f'model = {{}}\ndataset = {{}}\ntrain = dict(stages=[dict(at={value})])\n')
    (tmp_path / 'b.py').write_text("_base_ = 'a.py'\n")
    settings = dict(model={}, dataset={}, train=dict(stages=[dict(at=eval(value))]))
    for given in (tmp_path / 'a.py', tmp_path / 'b.py', settings):
        with pytest.raises(UserError, match=r'^train\.stages\[0\]\.at is <.*a config holds texts, numbers'):
            build_trainer(model=given, work_dir=tmp_path / 'work')


def test_missing_config_file(tmp_path):
    with pytest.raises(UserError, match=r"no\.py' does not exist. Give a \.py, \.yaml or \.json file"):
        load_config(tmp_path / 'no.py')


def test_custom_imports_from_beside_the_config(tmp_path, monkeypatch):
    (tmp_path / 'tuner_of_test_config.py').write_text(
        'from vet.core.tuner import Tuner\nfrom vet.registry import TUNERS\n\n\n@TUNERS.register_module()\n'
        "class OfTestConfig(Tuner):\n    length_key = ('mine_length', 'rank')\n\n    def __init__(self, rank=1):\n        super().__init__('norm')\n"
    )
    (tmp_path / 'a.py').write_text(
        "custom_imports = dict(imports=['tuner_of_test_config'])\ndataset = dict(train=dict(type='Digits'))\n"
        "model = dict(backbone=dict(type='DigitsViT', mine_length=3), tuners=[])\n"
    )
    try:
        assert read_settings(load_config(tmp_path / 'a.py')).model.tuners == [
            dict(type='OfTestConfig', rank=3)
        ]
        assert type(TUNERS.build(dict(type='OfTestConfig'))).__name__ == 'OfTestConfig'
    finally:
        TUNERS.module_dict.pop('OfTestConfig', None)


@pytest.mark.parametrize('value', [np.array([]), np.arange(3), np.float32(0.1)])
@pytest.mark.parametrize(
    'key', ['train.stages', 'train.lr_scheduler.T_max', 'model.tuners', 'model.backbone.lora_length']
)
def test_an_array_is_refused_however_it_comes_into_a_config(key, value):
    section, *above, last = key.split('.')

    def modify(config):
        owner = config[section]
        for part in above:
            owner = owner[part]
        owner[last] = value

    given = config(
        train=dict(lr_scheduler={}), model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='BitFit')])
    )
    holding = Config(copy.deepcopy(given))
    modify(holding)
    for changed_config, function, options in (
        (holding, None, None),
        (Config(given), modify, None),
        (Config(given), None, {key: value}),
    ):
        with pytest.raises(UserError, match='a config holds texts, numbers, lists and dicts'):
            modified(changed_config, function, options)


def test_the_names_of_an_older_vet_are_read():
    train = read_settings(config(train=dict(lean=False, routes='merged'))).train
    assert (train.shortcuts, train.routes) == (False, 'fused')
    assert changed(**{'train.lean': False}).train.shortcuts is False
    with pytest.raises(UnknownNameError, match="'lean'"):
        read_settings(config(train=dict(lean=False, shortcuts=False)))
