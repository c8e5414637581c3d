"""vet tune: only validation judges, the search goes on after a kill, and the winner is the best whole trial."""

import html
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from torch.utils.data import Dataset

from tests.fit.test_fit import COLOURS, photo
from vet import build_trainer
from vet.datasets.digits import Digits
from vet.errors import UserError
from vet.fit.run_folder import run_folder
from vet.registry import DATASETS, TUNERS
from vet.search.candidates import candidates
from vet.search.search import Search
from vet.search.tuning import Options, tune

CPU = Options(minutes=0.001, device='cpu', tuners=('LoRA', 'LinearProbe'))
READ: list[tuple[str, bool]] = []  # the split of each image that was read, and whether the search had ended


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config of 60 digits, whose dataset notes each read."""
    run = tmp_path / 'run'

    class Noted(Dataset):
        def __init__(self, split, root):
            self.digits = Digits(split='test' if split == 'test' else 'train')
            self.first, self.length = (60, 30) if split == 'val' else (0, 60)
            self.classes, self.split = self.digits.classes, split

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            READ.append((self.split, (run / 'config.py').exists()))
            return self.digits[self.first + index]

    monkeypatch.setitem(DATASETS.module_dict, 'Noted', Noted)
    READ.clear()
    file = tmp_path / 'digits.json'
    file.write_text(
        json.dumps(
            dict(
                model=dict(backbone=dict(type='DigitsViT', lora_length=2)),
                dataset={split: dict(type='Noted', split=split) for split in ('train', 'val', 'test')},
                train=dict(max_epochs=3, optimizer=dict(lr=1e-3), dataloader=dict(workers_per_gpu=0)),
                evaluation=dict(dataloader=dict(workers_per_gpu=0)),
            )
        )
    )
    return str(file), run


@pytest.mark.slow
def test_test_images_are_read_once_after_the_search(config):
    source, run = config
    result = tune(source, run, replace(CPU, minutes=0.2))
    assert {ended for split, ended in READ if split == 'test'} == {True}
    assert {ended for split, ended in READ if split == 'val'} == {True, False}
    assert len(result.tried) > 1 and f'{result.summary["accuracy"]:.4f}' in result.says()
    whole = [each for each in result.tried if each.is_whole]
    assert result.winner == whole[0] and result.winner.value == max(each.value for each in whole)
    assert all(each.epochs == 3 for each in whole) and all(
        each.epochs < 3 for each in result.tried[len(whole) :]
    )


def test_the_first_trial_is_the_config_itself_and_the_winner_has_a_config(config, tmp_path):
    source, run = config
    result = tune(source, run, CPU)  # time for one trial
    [only] = result.tried
    assert {ended for split, ended in READ if split == 'test'} == {True}
    assert (only.candidate, only.rate) == ('LoRA(rank=2)', 1e-3)
    again = build_trainer(model=run / 'config.py', work_dir=tmp_path / 'again', device='cpu').train()
    assert again['accuracy'] == result.summary['accuracy']
    assert only.numbers == again['parameters']['trainable'] and only.value == again['validation']
    page = (run / 'search.html').read_text()
    assert 'LoRA(rank=2)' in page and page.count('<svg') == 2 and '<script' not in page


@pytest.mark.slow
def test_a_search_goes_on_in_its_folder_and_refuses_other_options(config, capsys):
    source, run = config
    first = tune(source, run, CPU).tried
    more = tune(source, run, replace(CPU, minutes=0.3)).tried
    assert first[0] in more and len(more) > 1
    changed = 'has another winner. The test images were read before' in capsys.readouterr().err
    assert changed == (more[0] != first[0])
    with pytest.raises(UserError, match='holds a search with seed 0, and now seed is 1'):
        tune(source, run, replace(CPU, seed=1))


def test_a_search_in_use_or_with_other_settings_or_images_is_refused(config, monkeypatch):
    source, run = config
    with run_folder(run), pytest.raises(UserError, match='another process writes in'):
        tune(source, run, CPU)
    monkeypatch.setattr('vet.search.tuning._search', lambda *args: 'went on')
    assert tune(source, run, CPU) == 'went on' == tune(source, run, CPU)
    text = Path(source).read_text()
    Path(source).write_text(text.replace('"max_epochs": 3', '"max_epochs": 4'))
    with pytest.raises(
        UserError, match=r'digits.json has changed since the search in .* began: train differ'
    ):
        tune(source, run, CPU)
    Path(source).write_text(text)
    monkeypatch.setattr(DATASETS.module_dict['Noted'], '__len__', lambda self: self.length - 1)
    with pytest.raises(UserError, match='begun with other data. The differences: .*the train images'):
        tune(source, run, CPU)


@pytest.mark.slow
@pytest.mark.parametrize('launcher', ['local', 'ray'])
def test_a_killed_search_goes_on(tmp_path, launcher):
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(12):
            photo(tmp_path / 'photos' / name / f'{i}.png', colour, 100 * number + i)
    run = tmp_path / 'run'
    command = [sys.executable, '-m', 'vet', 'tune', tmp_path / 'photos', '--backbone', 'trial']
    command += [
        '--device',
        'cpu',
        '--out',
        run,
        '--tuners',
        'LoRA',
        'LinearProbe',
        'BitFit',
        '--minutes',
        '0.5',
        '--launcher',
        launcher,
    ]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    told = ''
    for line in process.stderr:
        told += line
        if line.startswith('trial 1:'):
            os.kill(process.pid, signal.SIGKILL)
            break  # processes of Ray live a while longer, and keep the pipe open
    process.stderr.close()
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (run / 'config.py').exists(), told
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and f'The search in {run} goes on.' in done.stderr
    trials = r'^(trial \d+): ([^,]+), '
    before = dict(re.findall(trials, told, re.MULTILINE))
    after = dict(re.findall(trials, done.stderr, re.MULTILINE))
    assert before and not before.keys() & after.keys()
    assert 'Test accuracy, read once: ' in done.stdout
    page = html.unescape((run / 'search.html').read_text())  # the terminal shows the best trials alone
    assert all(name in page for name in (before | after).values())


def test_each_tuner_states_candidates_that_it_takes():
    stated = candidates()
    assert {'LoRA', 'AdaptFormer', 'SSF', 'VPT', 'Full', 'LinearProbe'} <= {
        each.tuner['type'] for each in stated
    }
    assert len({each.name for each in stated}) == len(stated)
    for each in stated:
        TUNERS.build(dict(each.tuner))
        assert 0 < each.lowest < each.highest <= 0.1
    assert [each.tuner for each in candidates(['LoHa'])] == [dict(type='LoHa')]
    with pytest.raises(UserError, match="Did you mean 'LoRA'"):
        candidates(['LoRa'])


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'train.stages': [dict(epochs=1), dict(epochs=2)]}, 'has train.stages'),
        ({'model.tuners': [dict(type='LoRA'), dict(type='BitFit')]}, 'several tuners'),
    ],
)
def test_configs_that_a_search_does_not_take(config, changes, words):
    source, run = config
    if 'model.tuners' in changes:
        changes = changes | {'model.backbone': dict(type='DigitsViT', _delete_=True)}
    with pytest.raises(UserError, match=words):
        tune(source, run, replace(CPU, cfg_options=changes))


def test_a_metric_of_which_less_is_better_is_minimised(config):
    base = json.loads(open(config[0]).read())
    base['evaluation']['metrics'] = ['mae']
    (config[1]).mkdir()
    search = Search(config[1], base, candidates(['LinearProbe']), ('LinearProbe()', 1e-3))
    assert search.study.direction.name == 'MINIMIZE'


@pytest.mark.slow
def test_numbers_are_judged_by_the_metric_of_their_objective(tmp_path):
    rows = []
    for i in range(12):
        photo(tmp_path / f'{i}.png', (20 * i, 100, 100), i)
        rows.append(f'{i}.png,{i / 2},{("train", "train", "val", "test")[i % 4]}')
    (tmp_path / 'numbers.csv').write_text('path,height,split\n' + '\n'.join(rows))
    entry = dict(type='CSV', file=str(tmp_path / 'numbers.csv'), targets=['height'])
    source = tmp_path / 'numbers.json'
    loader = dict(workers_per_gpu=0, batch_size_per_gpu=4)
    source.write_text(
        json.dumps(
            dict(
                model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='LinearProbe')]),
                dataset={split: dict(entry, split=split) for split in ('train', 'val', 'test')},
                train=dict(max_epochs=1, optimizer=dict(lr=1e-3), dataloader=loader),
                evaluation=dict(dataloader=loader),
            )
        )
    )
    found = tune(str(source), tmp_path / 'run', replace(CPU, minutes=0.02, tuners=('BitFit', 'LinearProbe')))
    assert found.metric == 'mae'
    assert found.winner.value == min(tried.value for tried in found.tried if tried.is_whole)


@pytest.mark.slow
def test_a_trial_that_diverges_does_not_end_the_search(config, capsys):
    source, run = config
    changes = {'train.optimizer.lr': 1000, 'train.lr_scheduler.warmup_epochs': 0}
    found = tune(source, run, replace(CPU, cfg_options=changes))
    assert 'trial 0: LoRA(rank=2), learning rate 1e+03 diverges: the loss' in capsys.readouterr().err
    assert found.winner.is_whole and found.winner.rate < 1000


def test_a_trial_that_is_interrupted_is_tried_again(config):
    base = json.loads(open(config[0]).read())
    base['evaluation']['metrics'] = ['accuracy']
    (config[1]).mkdir()
    [probe] = candidates(['LinearProbe'])
    search = Search(config[1], base, [replace(probe, highest=1e30)], (probe.name, 1e30))
    with pytest.raises(UserError, match='lr is 1e'):
        search.run(60)
    again = Search(config[1], base, [replace(probe, highest=1e30)], (probe.name, 1e30))
    [waiting] = again.study.get_trials(states=(TrialState.WAITING,))
    assert waiting.system_attrs['fixed_params']['learning rate of LinearProbe'] == 1e30


def test_without_a_whole_trial_there_is_no_winner(config):
    base = json.loads(open(config[0]).read())
    base['evaluation']['metrics'] = ['accuracy']
    (config[1]).mkdir()
    search = Search(config[1], base, candidates(['LinearProbe']), ('LinearProbe()', 1e-3))
    with pytest.raises(UserError, match='no trial was trained in whole'):
        search.winner()


@pytest.mark.parametrize(
    'is_config, options, words',
    [
        (True, dict(backbone='small'), '--backbone is for photos, but the data are a config'),
        (True, dict(group_by='x'), '--group-by is for photos'),
        (False, dict(cfg_options={'seed': 1}), '--cfg-options is for a config, but the data are photos'),
    ],
)
def test_options_that_the_data_do_not_read_are_refused(config, tmp_path, is_config, options, words):
    with pytest.raises(UserError, match=words):
        tune(config[0] if is_config else str(tmp_path), config[1], replace(CPU, **options))


def test_a_search_that_cannot_begin_leaves_no_folder(config):
    source, run = config
    with pytest.raises(UserError, match="unknown key in train 'epochs'"):
        tune(source, run, replace(CPU, cfg_options={'train.epochs': 1}))
    assert not run.exists()


@pytest.mark.slow
def test_a_search_that_was_killed_while_it_prepared_the_data_begins_again(config, monkeypatch):
    source, run = config

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('vet.search.tuning._fitting', killed)
        tune(source, run, CPU)
    assert tune(source, run, CPU).winner.is_whole


def test_a_search_with_a_plugin_goes_on_in_a_new_process(config):
    source, run = config
    changed = json.loads(Path(source).read_text()) | dict(custom_imports=dict(imports=['of_hers']))
    changed['model'] = dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='OfHers')])
    Path(source).write_text(json.dumps(changed))
    Path(source).with_name('of_hers.py').write_text(
        'import vet\nfrom vet.registry import TUNERS\n\n@TUNERS.register_module()\nclass OfHers(vet.LinearProbe):\n    pass\n'
    )
    first = tune(source, run, CPU)
    TUNERS.module_dict.pop('OfHers')
    del sys.modules['of_hers']
    assert tune(source, run, CPU).tried == first.tried
    TUNERS.module_dict.pop('OfHers')


@pytest.mark.slow
def test_a_search_goes_on_with_the_candidates_that_it_began_with(config, monkeypatch):
    source, run = config
    first = tune(source, run, CPU)
    monkeypatch.setattr(
        'vet.search.tuning.candidates', lambda *_: []
    )  # as another version of vet might state
    assert first.tried[0] in tune(source, run, CPU).tried


@pytest.mark.parametrize('text', ['{"asked": {', '[]', '{"asked": {}, "base": {}}'])
def test_a_damaged_search_is_refused(config, text):
    source, run = config
    run.mkdir()
    (run / 'search.json').write_text(text)
    with pytest.raises(UserError, match='search.json. cannot be read'):
        tune(source, run, CPU)
