"""build_trainer and what it is made of: sources of a config, datasets, classes, and what a user gets
wrong.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vet import build_trainer
from vet.builders import build_datasets, find_config, resolve_data_root
from vet.config import read_settings
from vet.datasets.digits import Digits
from vet.errors import DataError, UnknownNameError, UserError
from vet.mmengine_parts import Config

QUICKSTART = Path(__file__).parents[1] / 'configs/quickstart.py'
FAST = {'train.max_epochs': 1, 'evaluation.before': False}


class Own:
    """The least a dataset of a user's own can be."""

    def __init__(self, count=12, classes=(0, 1)):
        self.classes, self.count = classes, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full((8, 8, 3), index * 20, np.uint8), index % 2


def make(tmp_path, **args):
    return build_trainer(
        default_args=dict(dict(model=QUICKSTART, work_dir=tmp_path / 'work', device='cpu'), **args)
    )


def test_task_and_arguments(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown task 'image-classification'"):
        build_trainer('image-classification', model=QUICKSTART)
    with pytest.raises(UnknownNameError, match="unknown model 'image-classification'"):
        build_trainer('image-classification')
    with pytest.raises(
        UnknownNameError, match="argument of build_trainer 'workdir'. Did you mean 'work_dir'"
    ):
        build_trainer(default_args=dict(model=QUICKSTART, workdir=tmp_path))
    with pytest.raises(UserError, match='build_trainer needs model='):
        build_trainer()
    with pytest.raises(
        UnknownNameError,
        match="unknown model 'damo/cv_vitb16'.*Allowed: .*damo/cv_vitb16_classification_vision-efficient-tuning-lora",
    ):
        make(tmp_path, model='damo/cv_vitb16')


def test_the_first_argument_may_be_the_config(tmp_path):
    trainer = build_trainer(QUICKSTART, work_dir=tmp_path, device='cpu')
    assert trainer.model.classes == make(tmp_path).model.classes


def test_default_args_and_keywords_are_one(tmp_path):
    trainer = build_trainer(
        default_args=dict(model=QUICKSTART, work_dir=tmp_path, seed=1), seed=2, device='cpu'
    )
    assert trainer.settings.seed == 2 and trainer.folder.path == tmp_path


def test_a_config_object_is_not_changed(tmp_path):
    config = Config.fromfile(str(QUICKSTART))
    before = config.to_dict()
    trainer = make(
        tmp_path,
        model=config,
        seed=5,
        train_dataset=Own(),
        eval_dataset=Own(),
        cfg_options={'train.max_epochs': 3},
        cfg_modify_fn=lambda c: c.model.head.update(num_classes=2),
    )
    assert trainer.settings.seed == 5 and trainer.settings.train.max_epochs == 3
    assert config.to_dict() == before
    plain = dict(model=dict(backbone=dict(type='DigitsViT')), dataset=dict(train=dict(type='Digits')))
    assert make(tmp_path, model=plain, seed=5).folder.path.name == 'work' and 'seed' not in plain


def test_work_dir_without_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_trainer(model=QUICKSTART, device='cpu').folder.path.parent == Path('work_dirs/quickstart')
    assert build_trainer(model=find_config(QUICKSTART), device='cpu').folder.path.parent == Path(
        'work_dirs/run'
    )
    assert build_trainer(
        model=QUICKSTART, device='cpu', cfg_options=dict(work_dir='mine')
    ).folder.path == Path('mine')


def test_datasets_of_ones_own(tmp_path):
    trainer = make(
        tmp_path,
        train_dataset=Own(),
        eval_dataset=Own(7),
        cfg_options=dict(FAST, **{'model.head.num_classes': None}),
    )
    assert trainer.model.classes == ['0', '1']
    assert set(trainer.train()) >= {'accuracy', 'output'} and 0 <= trainer.evaluate()['accuracy'] <= 1
    config = find_config(tmp_path / 'work')  # an object cannot be built again from its record
    assert 'train' not in config.dataset
    with pytest.raises(UserError, match='there is no training set: give dataset.train'):
        make(tmp_path, model=tmp_path / 'work/output', work_dir=tmp_path / 'b')
    again = make(
        tmp_path,
        model=tmp_path / 'work/output',
        work_dir=tmp_path / 'b',
        train_dataset=Own(),
        eval_dataset=Own(7),
    )
    assert again.model.classes == ['0', '1']


def test_dataset_without_classes_or_with_others(tmp_path):
    with pytest.raises(UserError, match='TensorDataset has no `classes`'):
        make(tmp_path, train_dataset=torch.utils.data.TensorDataset(torch.zeros(2)))
    with pytest.raises(
        UserError, match=r'dataset.test has other classes \(5: 5, 6, 7, …\) than dataset.train \(2: a, b, …\)'
    ):
        make(tmp_path, train_dataset=Own(classes=('a', 'b')))


def test_an_empty_dataset_is_refused_not_replaced(tmp_path):
    settings = read_settings(find_config(QUICKSTART))
    with pytest.raises(UserError, match='the dataset Own is empty'):
        build_datasets(settings, test=Own(0, [str(i) for i in range(5, 10)]))


def test_class_count_that_disagrees(tmp_path):
    with pytest.raises(UserError, match='model.head.num_classes is 4, but the dataset has 5 classes'):
        make(tmp_path, cfg_options={'model.head.num_classes': 4})


def test_head_initialisation_follows_the_seed(tmp_path):
    a, b, c = (make(tmp_path, seed=seed).model.head.fc.weight for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_hold_out_where_best_is_selected(tmp_path):
    trainer = make(tmp_path, cfg_options={'evaluation.select': 'best'})
    assert (
        len(trainer.data['val']) == 60
        and len(trainer.data['train']) == 599 - 60
        and len(trainer.data['test']) == 297
    )


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv('VET_DATA_ROOT', raising=False)
    assert resolve_data_root() == Path('data')
    monkeypatch.setenv('VET_DATA_ROOT', str(tmp_path))
    assert resolve_data_root() == tmp_path and resolve_data_root('~/x') == Path.home() / 'x'
    with pytest.raises(DataError, match=str(tmp_path / 'flowers')):
        build_datasets(
            read_settings(
                dict(
                    model=dict(backbone=dict(type='DigitsViT')),
                    dataset=dict(train=dict(type='ImageFolder', path='flowers')),
                )
            )
        )


def test_finetune_false_goes_on_from_a_folder(trainer, tmp_path):
    options = {'model.finetune': False}
    again = make(tmp_path, model=trainer.folder.path, cfg_options=options)
    assert again.evaluate() == trainer.evaluate()
    fresh = make(tmp_path, model=trainer.folder.output)
    assert not torch.equal(fresh.model.head.fc.weight, trainer.model.head.fc.weight)
    with pytest.raises(UserError, match='model.finetune is False.*other classes'):
        make(
            tmp_path,
            model=trainer.folder.output,
            cfg_options=options,
            eval_dataset=Digits(split='test', digits=[1, 2]),
            train_dataset=Digits(digits=[1, 2]),
        )


@pytest.mark.parametrize(
    'options, part',
    [
        ({'model.head': dict(type='MLP', width=4)}, 'head'),
        ({'model.tuners': [dict(type='BitFit')]}, 'tuners'),
    ],
    ids=['head', 'tuners'],
)
def test_finetune_false_takes_no_other_parts(trainer, tmp_path, options, part):
    with pytest.raises(UserError, match=rf"continues the folder's model, but model\.{part} is changed to"):
        make(tmp_path, model=trainer.folder.output, cfg_options={'model.finetune': False, **options})


def test_the_configs_val_does_not_choose_for_a_training_set_that_is_given(tmp_path):
    val = dict(type='Digits', split='test', digits=[5, 6, 7, 8, 9])
    config = find_config(QUICKSTART)
    config.merge_from_dict({'dataset.val': val, 'dataset.test': None})
    assert len(make(tmp_path, model=config).data['val']) == 297
    given = make(tmp_path, model=config, train_dataset=Digits(digits=[5, 6, 7, 8, 9]))
    assert given.data['val'] is None and given.settings.dataset.val is None
    chosen = make(
        tmp_path,
        model=config,
        train_dataset=Digits(digits=[5, 6, 7, 8, 9]),
        cfg_options={'evaluation.select': 'best'},
    )
    assert len(chosen.data['val']) == 60


def test_label_maps_of_train_and_test_are_equal(tmp_path):
    for split in ('train', 'test'):
        for number, name in enumerate(('cat', 'dog')):
            (tmp_path / split / name).mkdir(parents=True)
            noise = np.random.default_rng([len(split), number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / split / name / 'a.png')
    maps = dict(train=dict(cat=0, dog=2), test=dict(cat=2, dog=0))
    entries = {
        split: dict(type='ImageFolder', path='.', split=split, classes=['a', 'b', 'c'], label_map=label_map)
        for split, label_map in maps.items()
    }
    settings = read_settings(dict(model=dict(backbone=dict(type='DigitsViT')), dataset=entries))
    with pytest.raises(
        UserError,
        match="dataset.test.label_map gives 'cat' the label 2, but dataset.train.label_map gives 0; make them equal",
    ):
        build_datasets(settings, tmp_path)
    settings.dataset.test['label_map'] = maps['train']
    assert build_datasets(settings, tmp_path)['test'].targets == [0, 2]


@pytest.mark.parametrize('options', [{'model.tuners.3.rank': 1}, {'train.max_epochs.x': 1}])
def test_options_that_do_not_fit(tmp_path, options):
    with pytest.raises(UserError):
        make(tmp_path, cfg_options=options)


@pytest.mark.parametrize('section', [[], (), 'photos', 5])
def test_a_dataset_section_that_is_no_dict(tmp_path, section):
    with pytest.raises(UserError, match='dataset is .*; it must be a dict with the keys train, val, test'):
        make(
            tmp_path,
            model=dict(model=dict(backbone=dict(type='DigitsViT')), dataset=section),
            train_dataset=Own(),
        )


def test_a_path_is_no_dataset(tmp_path):
    with pytest.raises(
        UserError,
        match="a dataset is 'photos'; give a config entry, such as dict.type=\"ImageFolder\", path='photos'",
    ):
        make(tmp_path, train_dataset='photos')


class Wrong(Own):
    """Its third image has a label that no class has, or raises."""

    def __init__(self, third):
        super().__init__(12)
        self.third = third

    def __getitem__(self, index):
        if index == 3 and isinstance(self.third, Exception):
            raise self.third
        image, label = super().__getitem__(index)
        return image, self.third if index == 3 else label


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'third, text',
    [
        (-1, 'has the label -1'),
        (2, 'has the label 2'),
        ('1', 'has the label 1 .str'),
        (1.0, 'has the label 1.0'),
        (np.eye(2)[0], r'has the target .*Give all images of a dataset a class number'),
        (KeyError('gone'), 'cannot be read or transformed: KeyError'),
        (OSError('disk'), 'OSError: disk'),
        (ZeroDivisionError(), 'ZeroDivisionError'),
    ],
    ids=str,
)
def test_training_names_the_image_with_a_wrong_label_or_an_error(tmp_path, third, text, workers):
    reading = dict(batch_size_per_gpu=6, workers_per_gpu=workers)
    options = FAST | {'model.head.num_classes': None, 'train.dataloader': reading}
    trainer = make(tmp_path, train_dataset=Wrong(third), eval_dataset=Own(7), cfg_options=options)
    with pytest.raises(UserError, match=f'image 3 of Wrong .*{text}'):
        trainer.train()


@pytest.mark.parametrize('count', [8, 20])
def test_one_label_for_each_image(tmp_path, count):
    data = Own()
    data.targets = [index % 2 for index in range(count)]
    with pytest.raises(UserError, match=f'has {count} `targets`, but 12 images'):
        make(tmp_path, train_dataset=data, eval_dataset=Own(7), cfg_options=FAST)


@pytest.mark.parametrize('argument', ['work_dir', 'device', 'resume', 'data_root', 'seed', 'cfg_options'])
@pytest.mark.parametrize('value', [1.5, ['a'], np.arange(3), torch.zeros(2), object])
def test_an_argument_of_another_type_is_named(argument, value):
    with pytest.raises(UserError, match=rf'^{argument} of build_trainer is .*; {argument} must be '):
        build_trainer(model=QUICKSTART, **{argument: value})


def test_a_function_that_is_no_function_and_arguments_that_are_no_dict_are_named():
    with pytest.raises(UserError, match='cfg_modify_fn must be a function or None'):
        build_trainer(model=QUICKSTART, cfg_modify_fn='double')
    with pytest.raises(UserError, match='default_args of build_trainer is 5; give a dict'):
        build_trainer(default_args=5)


def test_a_work_dir_of_the_config_is_a_path():
    with pytest.raises(UserError, match="work_dir is 'a.*0b'; give the path of a folder"):
        build_trainer(model=Config(dict(Config.fromfile(QUICKSTART), work_dir='a\0b')), device='cpu')
    with pytest.raises(UserError, match=r"work_dir is \['a'\]; give the path of a folder"):
        build_trainer(model=QUICKSTART, cfg_options=dict(work_dir=['a']), device='cpu')
