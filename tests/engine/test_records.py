"""What a run writes about itself: log, TensorBoard events, curves, environment."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.runs import SmallDigits, build, small
from vet.engine.saving.events import Events
from vet.engine.saving.log import read_log
from vet.environment import describe

OPTIONS = {'train.log_every': 3, 'train.max_epochs': 3, 'evaluation.select': 'best', 'evaluation.every': 2}
OPTIONS |= {'evaluation.report': True}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run of three epochs of four steps, and its summary."""
    folder = tmp_path_factory.mktemp('records') / 'run'
    return folder, small(folder, **OPTIONS).train()


def test_log(run):
    records = read_log(run[0])
    training = [record for record in records if 'loss' in record]
    # every third, and the end of each epoch
    assert [record['step'] for record in training] == [3, 4, 6, 8, 9, 12]
    assert [record['epoch'] for record in training] == [1, 1, 2, 2, 3, 3]
    for record in training:
        assert set(record) == {'step', 'epoch', 'loss', 'accuracy', 'lr', 'images_per_second', 'memory_mb'}
        assert 0 <= record['accuracy'] <= 1 and record['loss'] > 0 and record['images_per_second'] > 0
        assert 50 < record['memory_mb'] < 1e6
        assert record['lr'] == pytest.approx(5e-3 * (1 + math.cos(math.pi * (record['step'] - 0.5) / 12)) / 2)
    validation = [record for record in records if 'val_accuracy' in record]
    # every second, and the last
    assert [(record['step'], record['epoch']) for record in validation] == [(8, 2), (12, 3)]


def test_log_means_over_images(tmp_path):
    """At a rate of nearly zero, the mean loss and accuracy since the last record are those of the model
    as it stands.
    """
    options = {'train.optimizer': dict(type='SGD', lr=1e-12), 'train.max_epochs': 1, 'train.log_every': 100}
    trainer = small(tmp_path / 'run', **options)
    trainer.train()
    [record] = read_log(tmp_path / 'run')
    data = trainer.data['train']
    answers = trainer.predict([data[i][0] for i in range(len(data))], topk=5)
    truth = [data.classes[label] for label in data.targets]
    losses = [
        -math.log(answer['scores'][answer['labels'].index(name)]) for answer, name in zip(answers, truth)
    ]
    assert record['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert record['accuracy'] == pytest.approx(
        np.mean([answer['labels'][0] == name for answer, name in zip(answers, truth)])
    )


def test_tensorboard_says_what_the_log_says(run):
    records, events = read_log(run[0]), EventAccumulator(str(run[0] / 'tensorboard')).Reload()
    names = {name for record in records for name in record} - {'step', 'epoch'}
    assert set(events.Tags()['scalars']) == names
    for name in names:
        logged = [(record['step'], record[name]) for record in records if name in record]
        assert [event.step for event in events.Scalars(name)] == [step for step, _ in logged]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [value for _, value in logged]
        )


def test_records_of_steps_that_are_done_again_are_void(tmp_path):
    """A run was killed after step 3, and goes on from its checkpoint of step 1."""
    for first, values in ((0, {1: 0.5, 2: 0.25, 3: 0.125}), (2, {2: 4.0})):
        events = Events(tmp_path, first)
        for step, value in values.items():
            events.add_scalar('loss', value, step)
        events.close()
    read = EventAccumulator(str(tmp_path)).Reload().Scalars('loss')
    assert [(event.step, event.value) for event in read] == [(1, 0.5), (2, 4.0)]


def test_curves(run):
    pixels = np.asarray(Image.open(run[0] / 'curves.png').convert('RGB'))
    assert pixels.shape[0] > 200 and pixels.shape[1] > 500
    colourful = np.ptp(pixels, axis=2) > 60  # lines; axes and text are gray
    left, right = np.split(colourful, [pixels.shape[1] // 2], axis=1)
    assert left.sum() > 100 and right.sum() > 100
    assert colourful[:, -pixels.shape[1] // 4 :].any()  # two pictures, which fill the page
    # training and validation
    assert len(np.unique(pixels[:, pixels.shape[1] // 2 :][right].reshape(-1, 3) // 64, axis=0)) > 1


def test_environment(run):
    found = json.loads((run[0] / 'environment.json').read_text())
    for name in ('torch', 'torchvision', 'timm', 'mmengine', 'accelerate', 'numpy', 'safetensors'):
        assert found['packages'][name].startswith(__import__(name).__version__.partition('+')[0])
    git = subprocess.run(
        ['git', 'rev-parse', 'HEAD'], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert found['git_revision'] == (git.stdout.strip() if git.returncode == 0 else None)
    assert found['device'].startswith('cpu') and found['cores'] >= 1 and found['command'] == sys.argv


def test_config_is_written_complete(run):
    found = json.loads((run[0] / 'config.json').read_text())
    assert (
        found['train']['log_every'] == 3
        and found['train']['clip_norm'] is None
        and found['train']['lr_scheduler']['T_max'] == 3
    )


def test_summary(run):
    folder, summary = run
    assert json.loads((folder / 'summary.json').read_text()) == summary
    assert summary['output_bytes'] == (folder / 'output' / 'tuner.safetensors').stat().st_size
    assert summary['parameters']['trainable'] == 6 * 4 * (64 + 192) + 64 * 5 + 5
    assert summary['steps'] == 12 and summary['epochs'] == 3 and summary['train_images'] == 108


def test_the_revision_is_vets_own(tmp_path, monkeypatch):
    """Not that of a repository in which somebody has installed it."""
    for command in (
        ['init', '-q'],
        ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-q', '--allow-empty', '-m', 'theirs'],
    ):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    (tmp_path / 'vet').mkdir()
    (tmp_path / 'vet/__init__.py').touch()
    monkeypatch.setattr('vet.__file__', str(tmp_path / 'vet/__init__.py'))
    found = describe(torch.device('cpu'))
    assert (found['git_revision'], found['git_changes']) == (None, False)
    subprocess.run(['git', 'add', 'vet'], cwd=tmp_path, check=True)
    found = describe(torch.device('cpu'))
    assert len(found['git_revision']) == 40 and found['git_changes']


def test_results_and_pages_are_no_changes_of_the_code(tmp_path, monkeypatch):
    """A second result of one commit is as clean as the first, which lies there uncommitted."""

    def git(*args):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=tmp_path, check=True)

    for name in ('vet/__init__.py', 'benchmarks/results/one.json', 'docs/page.md'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'ours')
    monkeypatch.setattr('vet.__file__', str(tmp_path / 'vet/__init__.py'))
    assert not describe(torch.device('cpu'))['git_changes']
    for name in (
        'benchmarks/results/one.json',
        'benchmarks/results/new/two.json',
        'benchmarks/speed/results/three.json',
        'docs/page.md',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('1')
    assert not describe(torch.device('cpu'))['git_changes']
    (tmp_path / 'vet/new.py').touch()
    assert describe(torch.device('cpu'))['git_changes']


def test_the_processor_is_named():
    found = describe(torch.device('cpu'))
    assert found['processor'] and found['device'] == f'cpu, {found["processor"]}'
    if (cpuinfo := Path('/proc/cpuinfo')).is_file() and 'model name' in cpuinfo.read_text():
        assert re.search(
            rf'^model name\s*: {re.escape(found["processor"])}$', cpuinfo.read_text(), re.MULTILINE
        )


class WithoutTargets(torch.utils.data.Dataset):
    """SmallDigits, of which nobody knows the labels before the images are read."""

    def __init__(self, split):
        self._digits = SmallDigits(split)
        self.classes = self._digits.classes

    def __len__(self):
        return len(self._digits)

    def __getitem__(self, index):
        return self._digits[index]


def test_a_report_says_which_counts_are_not_known(tmp_path):
    data = dict(train_dataset=WithoutTargets('train'), eval_dataset=WithoutTargets('test'))
    build(tmp_path / 'run', data=data, **{'train.max_epochs': 1, 'evaluation.report': True}).train()
    assert 'not known' in (tmp_path / 'run/report.html').read_text()
