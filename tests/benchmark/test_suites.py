"""The suites that ship: each loads, every run's config is read whole, and what it names is there to be
built.
"""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

from tests.nets import timm_net
from vet.benchmark.campaign import Campaign
from vet.benchmark.ranks import rank_notes, rank_rows
from vet.benchmark.references import find, references
from vet.benchmark.report import report
from vet.benchmark.results import read_results
from vet.benchmark.suite import load_suite
from vet.benchmark.tables import make_tables
from vet.benchmark.worker import work
from vet.config import load_config, read_settings
from vet.core.model import ImageClassifier
from vet.datasets.corrupted import CORRUPTIONS
from vet.datasets.vtab import GROUPS
from vet.engine.optim import build_optimizer
from vet.registry import BACKBONES, DATASETS, HEADS, TUNERS
from vet.transforms.torchvision import build_transform

ROOT = Path(__file__).parents[2]
SUITES = {path.stem: path for path in (ROOT / 'benchmarks/suites').glob('*.py')}
VIEW = dict(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, interpolation='bicubic')


@pytest.fixture(scope='module')
def runs():
    """runs(name): (searches, runs that count) of a suite, each made once."""
    made = {}

    def make(name):
        if name not in made:
            cells = load_suite(SUITES[name]).cells()
            made[name] = (
                [run for cell in cells for run in cell.searches()],
                [run for cell in cells for run in cell.runs()],
            )
        return made[name]

    return make


@pytest.mark.parametrize(
    'name, searches, counted',
    [
        ('quickstart', 0, 6 * 3),
        ('modelscope_vet', 0, 6 * 2 * 7 * 3),
        ('deit_tiny_real', 0, 2 * 7 * 3),
        ('deit_tiny_cpu', 0, 2 * 7),
        ('float8', 0, 3 * 3),
        ('efficiency', 0, 21 * 3),
        ('robustness', 0, 2 * 8 * 3),
        ('fewshot', 0, 5 * 5 * 7 * 3),
        pytest.param('methods', 3 * 67 * 4, 3 * 67 * 3, marks=pytest.mark.slow),
        pytest.param('fgvc', 5 * 2 * (10 + 9 + 9), 5 * 2 * 11 * 3, marks=pytest.mark.slow),
        pytest.param('vtab1k', 19 * 4 * 5, 19 * 18 * 3, marks=pytest.mark.slow),
    ],
)
def test_number_of_runs(runs, name, searches, counted):
    assert [len(part) for part in runs(name)] == [searches, counted]
    names = [run.name for part in runs(name) for run in part]
    assert len(set(names)) == len(names)
    said = re.findall(r'([\d,]+) runs', SUITES[name].read_text().split('\n')[0])
    assert said in ([], [f'{counted:,}'])


def test_no_suite_is_forgotten():
    assert set(SUITES) == {
        'quickstart',
        'modelscope_vet',
        'fgvc',
        'vtab1k',
        'deit_tiny_real',
        'deit_tiny_cpu',
        'float8',
        'fewshot',
        'robustness',
        'efficiency',
        'methods',
    }


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ('fgvc', 'vtab1k', 'fewshot', 'methods')
        else name
        for name in sorted(SUITES)
    ],
)
def test_every_config_is_complete_and_can_be_built(runs, name):
    """But for data and pretrained weights, which are not here."""
    backbones, tuners, transforms, optimizers = {}, {}, {}, {}
    for run in [*runs(name)[0], *runs(name)[1]]:
        config = run.config
        assert read_settings(config).to_dict() == config
        for split, entry in config['dataset'].items():
            assert entry is None or DATASETS.find(entry['type']), (run.name, split)
        assert not (run.is_search and config['dataset']['test'])
        backbones[str(config['model']['backbone'])] = config['model']['backbone']
        tuners[str(config['model']['tuners'])] = config['model']['tuners']
        transforms |= {
            str(config[part]['transform']): config[part]['transform'] for part in ('train', 'evaluation')
        }
        optimizers[str(config['train']['optimizer'])] = config['train']['optimizer']
    for backbone in backbones.values():
        assert BACKBONES.find(backbone['type'])
        assert backbone['type'] != 'timm' or timm.models.is_model_pretrained(backbone['name']), backbone
    for transform in transforms.values():
        build_transform(transform, **VIEW)
    for optimizer in optimizers.values():
        build_optimizer(optimizer, {'w': torch.nn.Parameter(torch.zeros(2, 2))})
    for entries in tuners.values():
        backbone = timm_net(
            'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3
        )
        model = ImageClassifier(
            backbone,
            [TUNERS.build(entry) for entry in entries],
            HEADS.build(dict(type='Linear'), in_features=192, num_classes=3),
            list('abc'),
        )
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3) and model.trainable()


def test_vtab_has_every_task_in_its_group(runs):
    found = {(run.group, run.dataset) for run in runs('vtab1k')[1]}
    assert found == {(group, task) for group, tasks in GROUPS.items() for task in tasks}
    for run in runs('vtab1k')[1]:
        assert {
            split: entry and (entry['task'], entry['split']) for split, entry in run.config['dataset'].items()
        } == {'train': (run.dataset, 'train+val'), 'val': None, 'test': (run.dataset, 'test')}
    for run in runs('vtab1k')[0]:
        assert {
            split: entry and (entry['task'], entry['split']) for split, entry in run.config['dataset'].items()
        } == {'train': (run.dataset, 'train'), 'val': (run.dataset, 'val'), 'test': None}


@pytest.mark.parametrize(
    'name, tuner, lrs',
    [
        ('fgvc', 'linear', [base * 1024 / 256 for base in (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50)]),
        ('fgvc', 'vpt_deep', [base * 128 / 256 for base in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50)]),
    ],
)
def test_grids_of_learning_rates_are_vpt_s(runs, name, tuner, lrs):
    found = [
        run
        for run in runs(name)[0]
        if (run.dataset, run.backbone, run.tuner) == ('cub200', 'vitb16_orig', tuner)
    ]
    assert [run.config['train']['optimizer']['lr'] for run in found] == pytest.approx(lrs)
    vpt = load_config(ROOT / 'configs/_base_/recipes/vpt2022.py').train.optimizer.to_dict()
    assert all(run.config['train']['optimizer'] | dict(lr=vpt['lr']) == vpt for run in found)
    assert all(
        run.config['evaluation']['select'] == 'best' and not run.config['evaluation']['before']
        for run in found
    )


def test_scales_reach_the_tuner(runs):
    found = [run for run in runs('vtab1k')[0] if (run.dataset, run.tuner) == ('kitti', 'fact_tk')]
    assert [run.config['model']['tuners'] for run in found] == [
        [dict(type='FacT', variant='tk', rank=32, dropout=0.1, scale=scale)]
        for scale in (0.01, 0.1, 1, 10, 100)
    ]


def test_what_a_recipe_cannot_say_reaches_the_backbone(runs):
    [entry] = {
        str(run.config['model']['backbone']): run.config['model']['backbone']
        for run in runs('vtab1k')[1]
        if run.tuner != 'linear'
    }.values()
    backbone = BACKBONES.build(
        {**entry, 'pretrained': False, 'kwargs': dict(entry['kwargs'], depth=2, embed_dim=48, num_heads=3)}
    )
    assert (
        backbone.network.blocks[-1].drop_path2.drop_prob == pytest.approx(0.1)
        and backbone.train().network.blocks[-1].training
    )
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406) and backbone.published.mean == (0.5, 0.5, 0.5)
    assert any('mean' in warning for warning in backbone.warnings())


@pytest.mark.parametrize(
    'name', [pytest.param('vtab1k', marks=pytest.mark.slow), 'quickstart', 'deit_tiny_real']
)
def test_linear_probes_keep_their_features_where_nothing_in_training_is_random(runs, name):
    for run in runs(name)[1]:
        train, kwargs = run.config['train'], run.config['model']['backbone'].get('kwargs', {})
        is_random = kwargs.get('drop_path_rate') or any(
            'Random' in step['type'] for step in train['transform']
        )
        assert train['cache_features'] == (run.tuner == 'linear' and not is_random), run.name
        assert train['cache_features'] == (run.suite == 'vtab1k' and run.tuner == 'linear')


def test_full_fine_tuning_has_a_rate_of_its_own(runs):
    trains = [(run.tuner, run.config['train']) for run in runs('deit_tiny_real')[1]]
    rates = {(tuner, train['optimizer']['lr'], train['head_lr']) for tuner, train in trains}
    assert ('full', 1e-4, 2e-3) in rates and {lr for tuner, lr, _ in rates if tuner != 'full'} == {2e-3}


def test_options_reach_every_run_of_deit_tiny():
    suite = load_suite(
        SUITES['deit_tiny_real'], {'model.backbone.checkpoint': 'w.pth', 'seeds': [0], 'train.max_epochs': 5}
    )
    made = [run.config for cell in suite.cells() for run in cell.runs()]
    assert len(made) == 14
    assert {
        (config['model']['backbone']['checkpoint'], config['train']['max_epochs']) for config in made
    } == {('w.pth', 5)}


def test_every_cell_of_the_card_s_table_has_its_reference(runs):
    published = {'lora', 'vpt_shallow', 'vpt_deep', 'side_tuning'}
    for run in runs('modelscope_vet')[1]:
        found = find(run.dataset, run.config['model']['backbone']['name'], run.tuner)
        assert any(entry.source.startswith('ModelScope card') for entry in found) == (
            run.tuner in published
        ), run.name


@pytest.mark.parametrize('name', ['fgvc', 'vtab1k'])
def test_names_are_those_of_the_references(runs, name):
    methods = {entry.method for entry in references()}
    assert {run.tuner for run in runs(name)[1]} <= methods
    if name == 'fgvc':
        cells = Counter(
            run.backbone
            for run in runs(name)[1]
            if find(run.dataset, run.config['model']['backbone']['name'], run.tuner)
        )
        assert cells == dict(vitb16_orig=5 * 6 * 3, vitb16_augreg=(4 * 5 - 1) * 3)


@pytest.mark.parametrize('name', sorted(SUITES))
def test_every_suite_says_what_it_is_and_how_it_is_run(name):
    assert (
        f'python tools/benchmark.py benchmarks/suites/{name}.py' in SUITES[name].read_text()
        and load_suite(SUITES[name]).title
    )


DIGITS = {split: dict(type='Digits', split=split, digits=[5, 6]) for split in ('train', 'test')}
MINIATURE = {
    'train.max_epochs': 1,
    'train.threads': 1,
    'train.dataloader.batch_size_per_gpu': 32,
    'train.dataloader.workers_per_gpu': 0,
    'train.transform': [],
    'train.lr_scheduler.warmup_epochs': 0,
    'evaluation.dataloader.workers_per_gpu': 0,
    'evaluation.transform': None,
    'evaluation.before': False,
}


def on_digits(entry):
    """The entry of a dataset of a suite, with the shipped digits in place of every set of images."""
    if not isinstance(entry, dict):
        return entry
    if 'type' in entry and 'dataset' not in entry:
        return DIGITS['train' if entry.get('split') in ('train', 'train+val') else 'test']
    return {key: on_digits(value) for key, value in entry.items()}


def miniature(name, folder, tuners, datasets, seeds=(0,)):
    """The campaign of a suite on digits: few seeds, one epoch, a few tuners and datasets of the suite."""
    whole = load_suite(SUITES[name])
    small = dataclasses.replace(
        whole,
        backbones=dict(vit=dict(type='DigitsViT')),
        tuners={tuner: whole.tuners[tuner] for tuner in tuners},
        datasets={dataset: {**on_digits(whole.datasets[dataset]), 'options': {}} for dataset in datasets},
        seeds=list(seeds),
        options=MINIATURE,
        grid={key: values[:2] for key, values in whole.grid.items()},
    )

    def here(jobs):
        for job in jobs:
            work(job)

    made = Campaign(small.cells(), folder / 'results', folder / 'work', str(folder), here, 'cpu')
    made.check()
    made.run()
    results = read_results(folder / 'results' / name)
    assert {result['status'] for result in results} == {'done'}
    return small, results


@pytest.mark.slow
def test_few_shots_in_miniature(tmp_path):
    small, results = miniature('fewshot', tmp_path, ['linear', 'lora'], ['pets-1', 'pets-4'])
    assert {result['dataset']: result['data']['train']['images'] for result in results} == {
        'pets-1': 2,
        'pets-4': 8,
    }
    [table] = make_tables(results, small)
    assert table.groups == {'pets-1': '1 shots', 'pets-4': '4 shots'}
    assert rank_rows(table)[0] == ['tuner', 'mean rank', 'pets-1, against lora', 'pets-4, against lora']


@pytest.mark.slow
def test_robustness_in_miniature(tmp_path):
    small, results = miniature('robustness', tmp_path, ['linear'], ['flowers102'])
    shifts = list(small.datasets['flowers102']['shifts'])
    assert shifts == list(CORRUPTIONS)
    for result in results:
        metrics = result['metrics']
        assert list(metrics) == ['accuracy', 'shifts/accuracy', *(f'{shift}/accuracy' for shift in shifts)]
        assert metrics['shifts/accuracy'] == pytest.approx(
            sum(metrics[f'{shift}/accuracy'] for shift in shifts) / len(shifts)
        )
    # digits are strokes: noise hurts, and the clean images are recognised best
    assert results[0]['metrics']['impulse_noise/accuracy'] < results[0]['metrics']['accuracy']
    [table] = make_tables(results, small)
    assert table.others()[0] == [
        'tuner',
        'dataset',
        'shifts/accuracy',
        *(f'{shift}/accuracy' for shift in shifts),
    ]


@pytest.mark.slow
def test_efficiency_in_miniature(tmp_path):
    small, results = miniature('efficiency', tmp_path, ['linear', 'lora_4'], ['flowers102'])
    page = report(results, small)
    for title in (
        'trained parameters, head included',
        'bytes of the model file',
        'seconds of the run',
        'peak memory',
    ):
        assert title in page


@pytest.mark.slow
def test_the_campaign_of_all_methods_in_miniature(tmp_path):
    small, results = miniature(
        'methods', tmp_path, ['LinearProbe', 'LoRA', 'BitFit'], ['flowers102', 'cifar100_subset'], (0, 1)
    )
    searches = sorted(
        (result for result in results if result['is_search']),
        key=lambda result: result['point']['train.optimizer.lr'],  # of equal results, the first counts
    )
    assert len(searches) == 2 * 3 * 2 and len(results) == len(searches) + 2 * 3 * 2
    for dataset in small.datasets:
        for tuner in small.tuners:
            of_cell = [one for one in searches if (one['dataset'], one['tuner']) == (dataset, tuner)]
            best = max(one['validation'] for one in of_cell)
            chosen = [one['point'] for one in of_cell if one['validation'] == best][0]
            counted = [
                one
                for one in results
                if not one['is_search'] and (one['dataset'], one['tuner']) == (dataset, tuner)
            ]
            assert [one['point'] for one in counted] == [chosen] * 2 and counted[0][
                'selected'
            ] == 'last epoch'
    [table] = make_tables(results, small)
    assert {row[0] for row in rank_rows(table)} == {'tuner', 'LinearProbe', 'LoRA', 'BitFit'}
    assert any(note.startswith("Friedman's test") for note in rank_notes(table))


def test_the_campaign_has_every_form_of_the_benchmark_of_tuners():
    forms = load_suite(SUITES['methods']).tuners
    types = {entry['type'] for form in forms.values() for entry in form['tuners']}
    assert types == set(TUNERS.names()) - {'BorderPrompt'}
