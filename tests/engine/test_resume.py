"""A run that is killed at any moment and resumed ends as one that was never stopped, bit for bit."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.runs import build, small, train_everything
from vet.config import Schedule
from vet.engine.optim import lr_factor
from vet.engine.saving.checkpoint import checksum, list_checkpoints
from vet.engine.saving.log import read_log
from vet.engine.saving.same_run import check_config
from vet.errors import DataError, TrainingError

TIMES = ('images_per_second', 'memory_mb', 'train_seconds', 'peak_memory_mb', 'work_dir', 'output')
MOMENTS = [
    ('step', 2),  # before there is any checkpoint
    ('tensors', 1),  # the first checkpoint, half written
    ('backward', 8),  # step 4 begun, one of its batches done; the newest checkpoint is of step 3
    ('checkpoint', 1),  # all of a checkpoint written, but not under its name
    ('validation', 1),  # of the first epoch
    ('progress', 2),
    ('removal', 2),  # of the oldest checkpoint, set aside
    ('step', 4),
    ('output', 1),  # trained to the end
    ('summary', 1),  # all but the summary written
]


def without_times(values):
    return {name: value for name, value in values.items() if name not in TIMES}


def result(folder):
    """All that a run ends with, apart from times."""
    newest = list_checkpoints(folder / 'checkpoints')[-1]
    progress = json.loads((newest / 'progress.json').read_text())
    assert progress.pop('checksum') and progress.pop('vet')
    assert progress.pop('log_bytes') == (folder / 'log.jsonl').stat().st_size
    return dict(
        tensors={name: tensor.tolist() for name, tensor in load_file(newest / 'state.safetensors').items()},
        output=(folder / 'output' / 'tuner.safetensors').read_bytes(),
        progress=without_times(progress),
        log=[without_times(record) for record in read_log(folder)],
        summary=without_times(json.loads((folder / 'summary.json').read_text())),
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def unbroken(process, tmp_path_factory):
    """The work folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    child = process(train_everything, folder)
    child.join()
    assert child.exitcode == 0
    return folder


@pytest.mark.slow
def test_killed_again_and_again(process, unbroken, tmp_path):
    folder = tmp_path / 'run'
    for moment in MOMENTS:
        child = process(train_everything, folder, 'auto', moment)
        child.join()
        assert child.exitcode == -signal.SIGKILL, f'{moment} never came'
    child = process(train_everything, folder, 'auto')
    child.join()
    assert child.exitcode == 0
    expected, found = result(unbroken), result(folder)
    for what in expected:
        assert found[what] == expected[what], what
    assert {name.partition('.')[0] for name in expected['tensors']} == {'model', 'optimizer', 'ema', 'best'}
    assert names(folder) == names(unbroken)  # no temporary file is left
    assert (
        names(folder / 'checkpoints') == names(unbroken / 'checkpoints') == ['step-00000012', 'step-00000015']
    )

    events = EventAccumulator(str(folder / 'tensorboard')).Reload()
    for name in ('loss', 'val_accuracy'):
        assert [(e.step, e.value) for e in events.Scalars(name)] == [
            (record['step'], pytest.approx(record[name])) for record in read_log(folder) if name in record
        ]


@pytest.mark.slow
def test_killed_from_outside(process, unbroken, tmp_path):
    """With SIGKILL from another process, as soon as the checkpoint of step 3 is seen. The child waits
    before step 5.
    """
    folder = tmp_path / 'run'
    child = process(train_everything, folder, None, ('step', 5, 'wait'))
    while not (folder / 'checkpoints' / 'step-00000003').exists():
        child.join(0.01)
        assert child.is_alive()
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (folder / 'summary.json').exists()
    child = process(train_everything, folder, 'auto')
    child.join()
    assert child.exitcode == 0
    assert result(folder) == result(unbroken)


@pytest.mark.slow
def test_from_an_earlier_checkpoint(process, unbroken, tmp_path):
    """--resume PATH goes back there: what came after is forgotten at once, the summary included."""
    folder = shutil.copytree(unbroken, tmp_path / 'run')
    earlier = folder / 'checkpoints' / 'step-00000012'
    child = process(train_everything, folder, str(earlier), ('step', 2))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (folder / 'summary.json').exists() and names(folder / 'checkpoints') == ['step-00000012']
    child = process(train_everything, folder, 'auto')
    child.join()
    assert child.exitcode == 0
    assert result(folder) == result(unbroken)


def test_checkpoint_of_another_folder(unbroken, tmp_path):
    """The log begins where that checkpoint stood: no line of the other folder's, and no hole."""
    run = small(tmp_path / 'one', **{'train.max_epochs': 2})
    run.train()
    elsewhere = small(
        tmp_path / 'two', str(tmp_path / 'one' / 'checkpoints' / 'step-00000004'), **{'train.max_epochs': 2}
    )
    elsewhere.train()
    assert [record['step'] for record in read_log(tmp_path / 'two')] == [8]
    tensors = [load_file(tmp_path / name / 'output' / 'tuner.safetensors') for name in ('one', 'two')]
    assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])


def test_an_argument_of_a_plugin_is_no_setting_of_the_run(finished):
    """`keep` of train.checkpoint may change. An argument of that name may change the result."""
    folder, _ = finished
    config = json.loads((folder / 'config.json').read_text())
    config['train']['checkpoint']['keep'] += 1
    assert not check_config(folder, config)
    config['dataset']['train']['keep'] = 2
    with pytest.raises(TrainingError, match=r'another config: dataset\.train\.keep differ'):
        check_config(folder, config)


def test_a_checkpoint_of_another_folder_needs_its_config(finished, tmp_path):
    folder, _ = finished
    checkpoint = str(folder / 'checkpoints' / 'step-00000004')
    with pytest.raises(
        TrainingError, match=r"run in '.*/run' was begun with another config: train\.ema differ"
    ):
        small(tmp_path / 'two', checkpoint, **{'train.max_epochs': 1, 'train.ema': 0.5}).train()
    assert not (tmp_path / 'two' / 'config.json').exists()


def test_a_checkpoint_of_another_folder_replaces_no_run(finished, tmp_path):
    folder, _ = finished
    other = shutil.copytree(folder, tmp_path / 'other')
    before = snapshot(other)
    with pytest.raises(TrainingError, match=r"/other' holds a run, and the checkpoint .* is of another run"):
        small(other, str(folder / 'checkpoints' / 'step-00000004'), **{'train.max_epochs': 1}).train()
    assert snapshot(other) == before


def test_the_run_itself_is_the_newest_checkpoint(finished):
    folder, summary = finished
    again = small(folder, str(folder), **{'train.max_epochs': 1}).train()
    assert again | dict(peak_memory_mb=summary['peak_memory_mb']) == summary  # the memory is the process's


def test_a_checkpoint_that_was_copied_alone_is_told(finished, tmp_path, capfd):
    folder, summary = finished
    alone = shutil.copytree(folder / 'checkpoints' / 'step-00000004', tmp_path / 'kept' / 'step-00000004')
    again = small(tmp_path / 'two', str(alone), **{'train.max_epochs': 1}).train()
    err = capfd.readouterr().err
    assert 'has no config.json. Whether the config is still the same is not known.' in ' '.join(err.split())
    assert again['accuracy'] == summary['accuracy']


def test_a_checkpoint_is_read_once(finished, monkeypatch):
    folder, _ = finished
    (folder / 'summary.json').unlink()
    read, paths = Path.read_bytes, []

    def noted(path):
        paths.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, 'read_bytes', noted)
    small(folder, 'auto', **{'train.max_epochs': 1}).train()
    assert paths.count('state.safetensors') == 1


@pytest.fixture
def finished(tmp_path):
    """A small run of one epoch, finished, and its summary."""
    return tmp_path / 'run', small(tmp_path / 'run', 'auto', **{'train.max_epochs': 1}).train()


def test_auto_begins_in_an_empty_folder(finished):
    folder, summary = finished
    assert summary['steps'] == 4 and (folder / 'summary.json').is_file()


def test_auto_does_nothing_on_a_finished_run(finished):
    folder, summary = finished
    before = snapshot(folder)
    again = small(folder, 'auto', **{'train.max_epochs': 1})
    assert again.train() == summary
    assert snapshot(folder) == before
    assert again.evaluate() == {'accuracy': summary['accuracy']}  # it has the trained weights


@pytest.mark.parametrize('state', ['a finished', 'an unfinished'])
def test_occupied_folder_is_refused(finished, state):
    folder, _ = finished
    if state == 'an unfinished':
        (folder / 'summary.json').unlink()
    before = snapshot(folder)
    with pytest.raises(TrainingError, match=f'{state} run.*--resume auto.*another work folder'):
        small(folder, **{'train.max_epochs': 1}).train()
    assert snapshot(folder) == before


@pytest.mark.parametrize('is_finished', [True, False])
def test_another_config_is_refused(finished, is_finished):
    folder, _ = finished
    if not is_finished:
        (folder / 'summary.json').unlink()
    with pytest.raises(
        TrainingError, match=r'another config: train\.ema, train\.lr_scheduler\.eta_min differ'
    ):
        small(
            folder,
            'auto',
            **{'train.max_epochs': 1, 'train.ema': 0.5, 'train.lr_scheduler': dict(eta_min=0.1)},
        ).train()


def test_another_number_of_processes_is_refused(finished):
    folder, _ = finished
    (folder / 'summary.json').unlink()
    progress = folder / 'checkpoints' / 'step-00000004' / 'progress.json'
    values = json.loads(progress.read_text()) | dict(processes=2)
    progress.write_text(json.dumps(values | dict(checksum=checksum(values))))
    with pytest.raises(TrainingError, match='begun with 2 processes.*given: 1'):
        small(folder, 'auto', **{'train.max_epochs': 1}).train()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    'tensors cut short': lambda folder: cut(folder / 'state.safetensors'),
    'tensors empty': lambda folder: (folder / 'state.safetensors').write_bytes(b''),
    'no tensors': lambda folder: (folder / 'state.safetensors').unlink(),
    'progress cut short': lambda folder: cut(folder / 'progress.json'),
    'no progress': lambda folder: (folder / 'progress.json').unlink(),
    'nothing there': shutil.rmtree,
}


@pytest.mark.parametrize(
    'damage',
    [
        pytest.param(damage, marks=[] if damage.endswith('cut short') else pytest.mark.slow)
        for damage in DAMAGES
    ],
)
def test_damaged_checkpoint_is_refused(finished, damage):
    folder, _ = finished
    (folder / 'summary.json').unlink()
    checkpoint = folder / 'checkpoints' / 'step-00000004'
    DAMAGES[damage](checkpoint)
    resume = str(checkpoint) if damage == 'nothing there' else 'auto'
    with pytest.raises(DataError, match='step-00000004.*cannot be read.*--resume PATH'):
        small(folder, resume, **{'train.max_epochs': 1}).train()


def test_what_a_killed_process_left_is_removed(finished):
    folder, summary = finished
    (folder / 'summary.json').unlink()
    for left in (
        'checkpoints/.step-00000008.1234.tmp',
        'checkpoints/.step-00000002.old.1234.tmp',
        '.output.1234.tmp',
    ):
        (folder / left).mkdir()
        (folder / left / 'state.safetensors').write_bytes(b'half')
    (folder / '.config.json.1234.tmp').write_text('{')
    (folder / '.notes').write_text('mine')
    assert without_times(small(folder, 'auto', **{'train.max_epochs': 1}).train()) == without_times(summary)
    assert not list(folder.rglob('*.tmp')) and (folder / '.notes').read_text() == 'mine'


def test_no_epochs(tmp_path):
    """Nothing is trained, but all is written: the model as it starts."""
    trainer = build(tmp_path / 'run', **{'train.max_epochs': 0})
    summary = trainer.train()
    assert summary['steps'] == 0 and summary['accuracy'] == summary['before']['accuracy']


@pytest.mark.slow
def test_checkpoints_of_some_epochs_and_of_the_last(tmp_path):
    for name, options, steps in (
        ('every second', dict(every_epochs=2), [8, 16, 20]),
        ('within epochs too', dict(every_epochs=9, every_steps=6), [6, 12, 18, 20]),
    ):
        small(tmp_path / name, **{'train.max_epochs': 5, 'train.checkpoint': dict(keep=9, **options)}).train()
        assert names(tmp_path / name / 'checkpoints') == [f'step-{step:08d}' for step in steps]


CONSTANT = {'train.lr_scheduler': dict(type='ConstantLR'), 'train.log_every': 1}


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_epochs(tmp_path, capfd):
    """With a constant learning rate it ends as the longer run does, bit for bit."""
    folder, options = tmp_path / 'run', CONSTANT | {'train.ema': 0.8}
    small(folder, **{'train.max_epochs': 1}, **options).train()
    capfd.readouterr()
    summary = small(folder, 'auto', **{'train.max_epochs': 3}, **options).train()
    said = ' '.join(capfd.readouterr().err.split())
    assert (
        'continues after step 4, now to epoch 3. From there on, the learning rate is that of a run of 3'
        in said
    )
    small(tmp_path / 'whole', **{'train.max_epochs': 3}, **options).train()
    tensors = [load_file(path / 'output' / 'tuner.safetensors') for path in (folder, tmp_path / 'whole')]
    assert summary['epochs'] == 3 and all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])
    assert small(folder, 'auto', **{'train.max_epochs': 3}, **options).train() == summary  # finished again


def test_more_epochs_follow_the_longer_schedule(finished):
    folder, _ = finished
    small(folder, 'auto', **{'train.max_epochs': 2, 'train.log_every': 1}).train()
    found = {record['step']: record['lr'] for record in read_log(folder) if 'lr' in record}
    schedule = Schedule(T_max=2)
    for step in (5, 6, 7, 8):
        assert found[step] == pytest.approx(5e-3 * lr_factor(schedule, (step - 0.5) / 4))


@pytest.mark.parametrize(
    'options, text',
    [
        (
            {'train.max_epochs': 1, 'train.ema': 0.5},
            r'train\.ema, train\.lr_scheduler\.T_max, train\.max_epochs',
        ),
        ({'train.max_epochs': 1}, 'resume and change only train.max_epochs to a larger number'),
    ],
)
def test_fewer_epochs_or_another_setting_are_refused(options, text, tmp_path):
    small(tmp_path / 'run', **{'train.max_epochs': 2}).train()
    with pytest.raises(TrainingError, match=text):
        small(tmp_path / 'run', 'auto', **options).train()


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    options = {
        'train.early_stop': 1,
        'train.optimizer': dict(type='SGD', lr=1e-9),  # no epoch is better than the first
        'train.max_epochs': 4,
    }
    summary = small(tmp_path / 'run', **options).train()
    assert summary['epochs'] == 2
    with pytest.raises(
        TrainingError, match='train.max_epochs is 9.*was stopped after step .* by train.early_stop'
    ):
        small(tmp_path / 'run', 'auto', **options | {'train.max_epochs': 9}).train()
    assert (tmp_path / 'run' / 'summary.json').is_file()


def test_another_device_is_told(finished, tmp_path, capfd):
    folder = shutil.copytree(finished[0], tmp_path / 'other')
    environment = json.loads((folder / 'environment.json').read_text())
    for device, is_told in ((environment['device'], False), ('a GPU', True)):
        (folder / 'environment.json').write_text(json.dumps(environment | dict(device=device)))
        small(folder, 'auto', **{'train.max_epochs': 2 + is_told}).train()
        told = 'was begun on a GPU, and goes on on' in ' '.join(capfd.readouterr().err.split())
        assert told == is_told
