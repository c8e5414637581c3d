"""A suite file becomes runs: their configs, names and grids, and what is refused in it."""

import pytest

from tests.benchmark.runs import write_suite
from vet.benchmark.suite import load_suite
from vet.errors import UnknownNameError, UserError


def suite(folder, more='', options=None):
    return load_suite(write_suite(folder, more), options)


def test_runs_are_datasets_by_backbones_by_tuners_by_seeds(tmp_path):
    made = suite(tmp_path, 'seeds = [3, 4]\ndatasets["other"] = dict(few, group="G")')
    runs = [run for cell in made.cells() for run in cell.runs()]
    assert [run.name for run in runs] == [
        f'{dataset}.vit.{tuner}.seed{seed}'
        for dataset in ('few', 'other')
        for tuner in ('linear', 'bias')
        for seed in (3, 4)
    ]
    assert [run.group for run in runs] == [''] * 4 + ['G'] * 4
    assert [run.config['seed'] for run in runs] == [3, 4] * 4
    assert (made.name, made.title) == ('tiny', 'Two digits, two tuners.')


def test_a_config_is_complete_and_the_later_option_wins(tmp_path):
    made = suite(
        tmp_path,
        """
options = {'train.max_epochs': 2, 'train.mixup': 0.1, 'train.cutmix': 0.1}
tuners['bias'] = dict(tuners=[dict(type='BitFit')], head=dict(type='MLP'), options={'train.mixup': 0.2, 'train.cutmix': 0.2})
datasets['few'] = dict(few, options={'train.cutmix': 0.3})""",
        {'train.max_epochs': 7},
    )
    linear, bias = (cell.runs()[0].config for cell in made.cells())
    assert [bias['train'][key] for key in ('max_epochs', 'mixup', 'cutmix')] == [7, 0.2, 0.3]
    assert [linear['train'][key] for key in ('max_epochs', 'mixup', 'cutmix')] == [7, 0.1, 0.3]
    assert (linear['model']['head'], bias['model']['head']) == (dict(type='Linear'), dict(type='MLP'))
    assert bias['model']['tuners'] == [dict(type='BitFit')] and bias['train']['lr_scheduler']['T_max'] == 7
    assert bias['evaluation']['metrics'] is None


def test_seeds_can_be_given_as_an_option(tmp_path):
    assert [run.seed for run in suite(tmp_path, 'seeds = [0]', {'seeds': [5, 6]}).cells()[0].runs()] == [5, 6]


def test_a_grid_is_searched_with_the_first_seed_and_without_the_test_split(tmp_path):
    made = suite(
        tmp_path,
        """
seeds = [3, 4]
grid = {'train.optimizer.lr': [1e-3, 1e-2], 'train.mixup': [0, 0.5]}
tuners['bias'] = dict(tuners=[dict(type='BitFit')], grid={})""",
    )
    linear, bias = made.cells()
    searches = linear.searches()
    assert [(run.config['train']['optimizer']['lr'], run.config['train']['mixup']) for run in searches] == [
        (1e-3, 0),
        (1e-3, 0.5),
        (1e-2, 0),
        (1e-2, 0.5),
    ]
    assert len({run.name for run in searches}) == 4 and {run.seed for run in searches} == {3}
    assert all(
        run.is_search
        and run.config['dataset']['test'] is None
        and run.config['evaluation']['select'] == 'best'
        and not run.config['evaluation']['before']
        for run in searches
    )
    assert bias.searches() == []
    options = {'dataset.test.digits': [5]}
    assert {
        run.config['dataset']['test']
        for run in suite(tmp_path, "grid = {'train.mixup': [0]}", options).cells()[0].searches()
    } == {None}
    counted = linear.runs(searches[2].point)
    assert [run.name for run in counted] == ['few.vit.linear.seed3', 'few.vit.linear.seed4']
    assert all(
        run.config['train']['optimizer']['lr'] == 1e-2 and run.config['dataset']['test'] and not run.is_search
        for run in counted
    )
    assert counted[0].config['evaluation']['select'] == 'last'


def test_only_takes_the_cells_that_fit(tmp_path):
    made = suite(tmp_path)
    assert [cell.tuner for cell in made.cells('*.bias')] == ['bias']
    with pytest.raises(
        UserError,
        match=r"--only 'few.bias' fits none of the runs; .*datasets \['few'\].*tuners \['linear', 'bias'\]",
    ):
        made.cells('few.bias')


@pytest.mark.parametrize(
    'more, error, text',
    [
        ('tuners = {}', UserError, 'lacks tuners'),
        ('backbones = [1]', UserError, 'lacks backbones'),
        ("baseline = 'lora'", UnknownNameError, "unknown baseline of a suite 'lora'.*linear"),
        (
            "tuners['bias'] = dict(tuner=[])",
            UnknownNameError,
            "key of the tuner 'bias' in a suite 'tuner'.*Did you mean 'tuners'",
        ),
        (
            "datasets['few'] = dict(few, tset=1)",
            UnknownNameError,
            "key of the dataset 'few' in a suite 'tset'.*'test'",
        ),
        (
            "datasets['few'] = dict(train=few['train'])",
            UserError,
            "the dataset 'few' in a suite has no test; give a test split",
        ),
        (
            "datasets['few'] = dict(few, search=dict(test=few['test']))",
            UnknownNameError,
            "split of the searches .* 'few' in a suite 'test'",
        ),
        (
            "grids = {'train.optimizer.lr': [1]}",
            UnknownNameError,
            "key of a suite 'grids'. Did you mean 'grid'",
        ),
        ('seed = 3', UnknownNameError, "key of a suite 'seed'. Did you mean 'seeds'"),
        ('seeds = 3', UserError, 'seeds is 3; it must be a list of different whole numbers'),
        ('seeds = [1, 1]', UserError, r'seeds is \[1, 1\]'),
        ('seeds = [True]', UserError, r'seeds is \[True\]'),
        ('seeds = []', UserError, r'seeds is \[\]'),
        ("tuners['a/b'] = []", UserError, "the name 'a/b' in a suite is no part of a file name"),
        ("tuners['a.b'] = []", UserError, "the name 'a.b' in a suite"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, more, error, text):
    with pytest.raises(error, match=text):
        suite(tmp_path, more)


def test_a_config_that_is_wrong_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UnknownNameError, match='key in train.*max_epoch'):
        suite(tmp_path, "options = {'train.max_epoch': 2}").cells()[0].runs()


def test_a_suite_names_the_modules_it_imports(tmp_path):
    (tmp_path / 'imported_by_a_suite.py').write_text('')
    made = suite(tmp_path, "custom_imports = dict(imports=['imported_by_a_suite'])")
    assert made.plugins == ('imported_by_a_suite',) and made.path == str(tmp_path / 'tiny.py')
    assert suite(tmp_path).plugins == ()
