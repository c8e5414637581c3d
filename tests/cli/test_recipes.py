"""tools/recipes.py: what differs between two recipes, and every recipe that ships."""

import numpy as np
import pytest
import torch
from PIL import Image

from vet.cli.recipes import read_recipe
from vet.config import Schedule
from vet.engine.optim import build_optimizer, lr_factor
from vet.shipped import shipped
from vet.transforms.torchvision import build_transform

RECIPES = shipped('recipes')


@pytest.fixture
def recipes(command, monkeypatch):
    """recipes(A, B): (exit code, the rows of the table as lists of cells, or what else is printed, stderr)"""
    monkeypatch.setenv('COLUMNS', '200')

    def call(*names):
        code, out, err = command('recipes', *names)
        rows = [
            [cell.strip() for cell in line.replace('┃', '│').strip('│').split('│')]
            for line in out.splitlines()
        ]
        return code, [row for row in rows if len(row) == 3] or out, err

    return call


def test_the_difference(recipes):
    code, rows, err = recipes('vpt2022', 'ssf2022')
    assert (code, err) == (0, '') and rows[0] == ['key', 'vpt2022', 'ssf2022']
    for row in (
        ['train.optimizer.type', "'SGD'", "'AdamW'"],
        ['train.optimizer.momentum', '0.9', '-'],
        ['train.dataloader.batch_size_per_gpu', '128', '64'],
        ['train.ema', 'None', '0.9998'],
        [
            'train.transform',
            "Resize(size=256, interpolation='bilinear')",
            'RandomResizedCrop(scale=[0.08, 1.0])',
        ],
        ['', 'RandomCrop(size=224)', 'RandomHorizontalFlip()'],
        ['', 'RandomHorizontalFlip()', ''],
    ):
        assert row in rows, row
    assert not {'train.max_epochs', 'train.lr_scheduler.T_max', 'evaluation.select'} & {
        row[0] for row in rows
    }


def test_files_are_completed_with_the_defaults(recipes, tmp_path):
    short, long = tmp_path / 'short.py', tmp_path / 'long.yaml'
    short.write_text(
        'train = dict(max_epochs=7, label_smoothing=0)\nmodel = dict(backbone=dict(type="timm"))\n'
    )
    long.write_text(
        'train: {max_epochs: 7, lr_scheduler: {T_max: 7}, label_smoothing: 0.0, mixup: 0.5}\n'
        'evaluation: {select: last}\n'
    )
    code, rows, _ = recipes(short, long)
    assert code == 0 and [row for row in rows[1:] if row[0]] == [['train.mixup', '0.0', '0.5']]


def test_no_difference(recipes):
    assert recipes('vet', RECIPES['vet'])[1] == f'vet and {RECIPES["vet"]} do not differ.\n'


def test_an_unknown_recipe_is_refused_with_the_list(fails):
    fails("unknown recipe 'vpt22'.", f'Allowed: {", ".join(RECIPES)}.', of=['recipes', 'vet', 'vpt22'])
    fails("the recipe 'nowhere/own.py' does not exist.", of=['recipes', 'vet', 'nowhere/own.py'])


def test_a_recipe_with_an_unknown_key_is_refused(fails, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text('train = dict(max_epoch=7)\n')
    fails("unknown key in train 'max_epoch'. Did you mean 'max_epochs'", of=['recipes', 'vet', path])


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_can_be_trained_with(name):
    recipe = read_recipe(name)
    settings = dict(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, interpolation='bicubic')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8))
    torch.manual_seed(0)
    for section in ('train', 'evaluation'):
        views = [build_transform(recipe[section]['transform'], **settings)(image) for _ in range(5)]
        for view in views:
            assert (
                view.shape == (3, 224, 224)
                and view.dtype == torch.float32
                and view.isfinite().all()
                and view.std() > 0.1
            )
        assert section == 'train' or all(torch.equal(view, views[0]) for view in views)
    optimizer = build_optimizer(recipe['train']['optimizer'], {'w': torch.nn.Parameter(torch.zeros(2, 2))})
    assert optimizer.param_groups[0]['lr'] == recipe['train']['optimizer']['lr']
    schedule = Schedule(**recipe['train']['lr_scheduler'])
    assert schedule.T_max == recipe['train']['max_epochs'] and recipe['evaluation']['select'] == 'last'
    assert lr_factor(schedule, schedule.T_max) == pytest.approx(schedule.eta_min)
    assert lr_factor(schedule, schedule.warmup_epochs) == 1


@pytest.mark.parametrize(
    'name, epochs, warmup, batch, lr, last_lr',
    [
        ('vpt2022', 100, 10, 128, 2.5 * 128 / 256, 0),
        ('ssf2022', 100, 10, 64, 1e-2, 1e-8),
        ('ssf2022_cifar100', 100, 10, 128, 1e-3, 1e-8),
        ('fact2023', 100, 10, 64, 1e-3, 1e-5),
        ('adapter_plus2024', 100, 10, 64, 1e-3, 1e-6),
        ('osu2024', 40, 4, 64, 1e-3, 0),
    ],
)
def test_the_papers_numbers(name, epochs, warmup, batch, lr, last_lr):
    train = read_recipe(name)['train']
    assert (
        train['max_epochs'],
        train['lr_scheduler']['warmup_epochs'],
        train['dataloader']['batch_size_per_gpu'],
        train['optimizer']['lr'],
    ) == (epochs, warmup, batch, lr)
    assert train['lr_scheduler']['eta_min'] * lr == pytest.approx(last_lr)


@pytest.mark.parametrize('name', [name for name in RECIPES if name != 'vet'])
def test_every_recipe_names_its_paper_and_says_what_it_leaves_out(name):
    text = RECIPES[name].read_text()
    assert 'arXiv:' in text or 'published no recipe' in text
    said = (
        'This config does not set',
        'The code differs',
        "differs from torchvision's",
        'Our interpretation',
        'Assumed:',
    )
    assert any(words in text for words in said)
