"""What goes wrong on the way: one clear message, and nothing lost that was saved before."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import SmallDigits, build, config, small
from vet.core.tuner import Tuner
from vet.engine.saving.checkpoint import list_checkpoints
from vet.engine.saving.log import Log, read_log
from vet.errors import TrainingError
from vet.files import publish_folder, write_file

ROOT = Path(__file__).parents[2]


class Exploding(Tuner):
    """Thaws the norms; from step `since` on one of their values is not finite, as too high a learning
    rate makes them.
    """

    def __init__(self, since):
        super().__init__('norm')
        self.since, self.steps = since, 0

    def tune(self, site):
        self.thaw(site)

    def on_step(self, progress):
        self.steps += 1
        if self.steps >= self.since:
            next(self.trainable())[1].data.fill_(float('nan'))


# a checkpoint is due at step 6, whose own loss is still finite with 6
@pytest.mark.parametrize('since', [5, 6])
def test_weights_that_are_not_finite(tmp_path, register_tuner, since):
    """They reach no checkpoint, though log_every is far: the newest one can be gone on from."""
    folder = tmp_path / 'run'
    register_tuner(Exploding)
    options = {'train.checkpoint': dict(every_steps=3, keep=1), 'train.log_every': 1000}
    trainer = small(folder, **options, **{'model.tuners': [dict(type='Exploding', since=since)]})
    with pytest.raises(
        TrainingError, match=r'at step 6 the loss is .* not finite.*train\.optimizer\.lr.*now 0\.00'
    ):
        trainer.train()
    [checkpoint] = list_checkpoints(folder / 'checkpoints')
    assert checkpoint.name == 'step-00000004'  # the end of the first epoch
    assert all(value.isfinite().all() for value in load_file(checkpoint / 'state.safetensors').values())


def test_loss_that_is_not_finite(tmp_path):
    """A real one, of a learning rate of 1000 with a decay of 1; with one of 1e-3 a new run in its place
    is possible.
    """
    trainer = small(tmp_path / 'run', **{'train.optimizer': dict(type='SGD', lr=1000, weight_decay=1)})
    with pytest.raises(TrainingError, match=r'Lower train\.optimizer\.lr \(now [\d.e+]+\)'):
        trainer.train()
    assert not list_checkpoints(tmp_path / 'run' / 'checkpoints')
    small(tmp_path / 'run', **{'train.optimizer': dict(type='SGD', lr=1e-3)}).train()


def test_a_loss_that_is_not_finite_ends_the_run_at_the_next_line_of_the_log(tmp_path):
    """An epoch has ten steps, and nothing is saved before its end."""
    optimizer = dict(type='SGD', lr=1000, weight_decay=1)
    trainer = small(tmp_path / 'run', **{'train.optimizer': optimizer, 'train.log_every': 1})
    with pytest.raises(TrainingError, match=r'at step \d the loss is') as raised:
        trainer.train()
    steps = [record['step'] for record in read_log(tmp_path / 'run') if 'loss' in record]
    assert int(re.search(r'at step (\d)', str(raised.value))[1]) == len(steps) + 1


@pytest.fixture
def full():
    """A file system without space."""
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full here')
    return '/dev/full'


def test_full_disk_refuses_a_file(tmp_path, full, monkeypatch):
    """The real error of a full device, under the name of a temporary file."""
    path = tmp_path / 'config.json'
    write_file(path, 'old')
    real_open = open
    monkeypatch.setattr(
        'builtins.open', lambda name, mode='r', *args: real_open(full if 'w' in mode else name, mode, *args)
    )
    with pytest.raises(TrainingError, match=r'no space is left to write .*config\.json.*--resume auto'):
        write_file(path, 'new')
    with pytest.raises(TrainingError, match='no space is left'):
        publish_folder(
            tmp_path / 'step-00000003', lambda temporary: write_file(temporary / 'state.safetensors', b'new')
        )
    monkeypatch.undo()
    assert path.read_text() == 'old' and [found.name for found in tmp_path.iterdir()] == ['config.json']


def test_full_disk_refuses_the_log(tmp_path, full):
    with (
        pytest.raises(TrainingError, match=r'no space is left to write .*log\.jsonl'),
        Log(tmp_path, 0, 0) as log,
    ):
        log._file = open(full, 'ab')
        log.write(1, loss=1.0)
        log.flush()


@pytest.mark.slow
def test_full_disk_while_training(tmp_path):
    """On a real file system of 900 KiB: the checkpoints before stay, and with more space the run goes
    on to the end.
    """
    unshare = ['unshare', '-m'] if os.geteuid() == 0 else ['unshare', '-Urm']
    if not shutil.which('unshare') or subprocess.run([*unshare, 'true'], capture_output=True).returncode:
        pytest.skip('this user may not mount a small file system')
    small_disk, kept = tmp_path / 'disk', tmp_path / 'kept'
    small_disk.mkdir()
    options = {
        'train.checkpoint': dict(every_steps=2, keep=4),
        'train.max_epochs': 1,
        'model.tuners': [dict(type='LoRA', rank=16)],
    }
    (tmp_path / 'config.json').write_text(json.dumps(config(**options)))
    train = f'{sys.executable} tools/train.py {tmp_path}/config.json --device cpu'
    script = (
        f'mount -t tmpfs -o size=900k tmpfs {small_disk} && {train} --work-dir {small_disk}/run; code=$?; '
        f'cp -r {small_disk}/run {kept}; exit $code'
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    answer = subprocess.run(
        [*unshare, 'sh', '-c', script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert answer.returncode == 2, answer.stderr
    assert 'error: no space is left' in answer.stderr and 'Traceback' not in answer.stderr
    saved = list_checkpoints(kept / 'checkpoints')
    assert saved and saved[-1].name < 'step-00000010'
    assert not list(kept.rglob('*.tmp'))
    summary = build(kept, 'auto', **options).train()
    assert summary['steps'] == 10 and [record['step'] for record in read_log(kept)] == [2, 4, 6, 8, 10]
    whole = build(tmp_path / 'whole', **options)
    whole.train()
    tensors = [load_file(folder / 'output' / 'tuner.safetensors') for folder in (kept, tmp_path / 'whole')]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


class Hungry(Tuner):
    """Thaws the norms; at step 6 it asks for more memory than there is."""

    def __init__(self, kind):
        super().__init__('norm')
        self.kind, self.steps = kind, 0

    def tune(self, site):
        self.thaw(site)

    def on_step(self, progress):
        self.steps += 1
        if self.steps == 6:
            dict(
                torch=lambda: torch.empty(10**15),
                numpy=lambda: np.empty(10**15),
                python=lambda: bytearray(10**15),
                gpu=self._raise,
            )[self.kind]()

    def _raise(self):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')


@pytest.mark.parametrize('kind', ['torch', 'numpy', 'python', 'gpu'])
def test_too_little_memory(tmp_path, register_tuner, kind):
    register_tuner(Hungry)
    with pytest.raises(
        TrainingError, match=r'there is not enough memory .*batch_size_per_gpu.*step-00000004.*--resume auto'
    ):
        small(tmp_path / 'run', **{'model.tuners': [dict(type='Hungry', kind=kind)]}).train()
    [checkpoint] = list_checkpoints(tmp_path / 'run' / 'checkpoints')
    assert checkpoint.name == 'step-00000004'


class Deadly(SmallDigits):
    """The process that reads image 7 for the second time is killed, as for want of memory."""

    def __init__(self, split, seen):
        super().__init__(split)
        self.seen, self.run = seen, os.getpid()

    def __getitem__(self, index):
        if index == 7 and self.seen.exists() and os.getpid() != self.run:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 7:
            self.seen.touch()
        return super().__getitem__(index)


def train_with_a_deadly_dataset(run: Path, seen: Path, resume: str | None) -> None:
    """In a process of its own: torch tells that a reading process was killed at any line of the main
    process.
    """
    data = dict(train_dataset=Deadly('train', seen), eval_dataset=SmallDigits('test'))
    options = {
        'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=1),
        'train.checkpoint': dict(every_steps=1),
    }
    try:
        print(build(run, resume, data, **options).train()['steps'])
    except TrainingError as error:
        print(error)


@pytest.mark.slow
def test_a_killed_worker(tmp_path, python):
    script = (
        'import sys; from pathlib import Path; from tests.engine.test_failures import '
        'train_with_a_deadly_dataset as train; train(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if '
        'len(sys.argv) > 3 else None)'
    )
    killed = python('-c', script, tmp_path / 'run', tmp_path / 'seen')
    assert re.search(r'a process that reads images ended .*--resume auto', killed.stdout), (
        killed.stdout + killed.stderr
    )
    assert list_checkpoints(tmp_path / 'run' / 'checkpoints')
    (tmp_path / 'seen').unlink()
    again = python('-c', script, tmp_path / 'run', tmp_path / 'seen', 'auto')
    assert '8' in again.stdout.splitlines(), again.stdout + again.stderr


WRITES = (
    'config.json',
    'tuner.safetensors',
    'state.safetensors',
    'summary.json',
    'events.out',
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            'environment.json',
            'identity.json',
            'configuration.json',
            'progress.json',
            'predictions.npz',
        )
    ),
    pytest.param('curves.png', marks=pytest.mark.slow),
)


@pytest.mark.parametrize('name', WRITES)
@pytest.mark.parametrize('count', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_full_disk_at_each_write(tmp_path, full, monkeypatch, name, count):
    """The real error of a full device at each file that a run writes: named; what was saved stays; the
    run goes on.
    """
    real_open, opened = open, []

    def open_full(path, mode='r', *args, **kwargs):
        if any(letter in mode for letter in 'wax') and name in str(path):
            opened.append(path)
            if len(opened) == count:
                return real_open(full, mode.replace('x', 'w'), *args, **kwargs)
        return real_open(path, mode, *args, **kwargs)

    options = {'train.max_epochs': 2, 'train.ema': 0.9, 'evaluation.report': name == 'curves.png'}
    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', open_full)
        trainer = small(tmp_path / 'run', **options)
        try:
            trainer.train()
        except TrainingError as error:
            assert 'no space is left' in str(error) and '--resume auto' in str(error)
        else:
            assert len(opened) < count  # written once in a run
    if not (tmp_path / 'run/summary.json').exists():
        assert small(tmp_path / 'run', 'auto', **options).train()['steps'] == 8
    assert [record['step'] for record in read_log(tmp_path / 'run')] == [4, 8]
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.name.endswith('.tmp')]


def test_work_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='--work-dir'):
        small(tmp_path / 'file' / 'run').train()


@pytest.mark.slow
def test_command_refuses_an_occupied_folder(tmp_path):
    """Exit code 2, one message, no traceback."""
    small(tmp_path / 'run', **{'train.max_epochs': 1}).train()
    (tmp_path / 'config.json').write_text(json.dumps(config()))
    command = [
        sys.executable,
        'tools/train.py',
        f'{tmp_path}/config.json',
        '--work-dir',
        f'{tmp_path}/run',
        '--device',
        'cpu',
    ]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert answer.returncode == 2, answer.stderr
    assert 'holds a finished run' in answer.stderr and 'Traceback' not in answer.stderr and not answer.stdout
