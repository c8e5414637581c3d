"""A signal ends a run after its step, with a checkpoint, and what goes on from there ends as if no
signal had come.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.engine.runs import TWO_PROCESSES, ended, small, train_everything
from tests.engine.test_resume import result
from vet.engine import evaluate
from vet.engine.learner import Learner
from vet.engine.saving.checkpoint import list_checkpoints, load_checkpoint
from vet.engine.saving.log import read_log
from vet.engine.stop import Stop, StopRequested

ROOT = Path(__file__).parents[2]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
OPTIONS = {'train.ema': 0.8, 'evaluation.select': 'best', 'train.max_epochs': 2, 'train.log_every': 3}


@pytest.fixture(autouse=True)
def handlers():
    """The handlers are after each test what they were before it."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


class Handled(Exception):
    """What a user's own handler raises."""


@pytest.fixture
def own_handler():
    """A user's own handler of SIGTERM, which raises Handled."""

    def handle(number, frame):
        raise Handled

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)


def signalled(monkeypatch, number, moment, count):
    """From now, a signal comes in the middle of the `count`-th step or validation."""
    owner, name = dict(step=(Learner, '_accumulate'), validation=(evaluate, 'score'))[moment]
    original, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    'moment, count, steps',
    [
        ('step', 3, 3),
        ('validation', 2, 4),
        *(pytest.param('step', n, n, marks=pytest.mark.slow) for n in (1, 4, 8)),
    ],
)
def test_ctrl_c_from_python(tmp_path, monkeypatch, capfd, moment, count, steps):
    """The step is finished and saved, and KeyboardInterrupt raised; the run that goes on has the same
    weights, log and summary.
    """
    expected = ended(small(tmp_path / 'whole', **OPTIONS))
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, moment, count)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / 'run', **OPTIONS).train()
    newest = list_checkpoints(tmp_path / 'run' / 'checkpoints')[-1]
    assert load_checkpoint(newest)[0].step == steps
    shown = capfd.readouterr().err
    assert (
        f'SIGINT: the run is saved after step {steps}. To go on: build_trainer(…, work_dir=…, '
        'resume="auto").train()' in shown
    )
    assert ended(small(tmp_path / 'run', 'auto', **OPTIONS)) == expected


def test_the_former_handler_gets_the_signal(tmp_path, monkeypatch, own_handler):
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, 'step', 2)
        with pytest.raises(Handled):
            small(tmp_path / 'run').train()
    assert load_checkpoint(list_checkpoints(tmp_path / 'run' / 'checkpoints')[-1])[0].step == 2
    assert small(tmp_path / 'run', 'auto').train()['steps'] == 8


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    """Within the step: nothing is saved of it."""
    accumulate = Learner._accumulate

    def twice(*args):
        signal.raise_signal(
            signal.SIGTERM if len(list_checkpoints(tmp_path / 'run' / 'checkpoints')) else signal.SIGINT
        )
        signal.raise_signal(signal.SIGINT)
        return accumulate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, '_accumulate', twice)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / 'run').train()
    assert not list_checkpoints(tmp_path / 'run' / 'checkpoints')
    assert small(tmp_path / 'run', 'auto').train()['steps'] == 8


@pytest.mark.parametrize(
    'count, words',
    [
        (1, 'The run had no checkpoint yet, so nothing is saved. Begin the run again.'),
        (2, 'step-00000008\'. To go on: build_trainer(…, work_dir=…, resume="auto").train()'),
    ],
    ids=['before the steps', 'after the steps'],
)
def test_a_signal_outside_of_the_steps_tells_the_way_on(tmp_path, monkeypatch, capfd, count, words):
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, 'validation', count)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / 'run').train()
    assert words in ' '.join(capfd.readouterr().err.split())
    assert small(tmp_path / 'run', 'auto').train()['steps'] == 8


def test_an_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            signalled(patch, signal.SIGHUP, 'step', 2)
            assert small(tmp_path / 'run').train()['steps'] == 8
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_no_handler_is_set(tmp_path):
    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(small(tmp_path / 'run').train()))
    thread.start()
    thread.join()
    assert summaries[0]['steps'] == 8


@pytest.mark.parametrize('is_within', [True, False])
def test_work_that_may_be_broken_off_ends_at_once(capfd, is_within):
    """A signal within `interrupting`, or one that came before."""
    done = []
    with Stop(Accelerator(cpu=True)) as stop:
        if not is_within:
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_asked()  # outside of `interrupting`, a signal is only noted
        with pytest.raises(StopRequested), stop.interrupting():
            done.append('begun')
            signal.raise_signal(signal.SIGTERM)
            done.append('went on')
    assert done == (['begun'] if is_within else [])
    assert 'SIGTERM: the run ends after this step' in capfd.readouterr().err


def test_a_log_goes_on_without_a_gap(tmp_path, monkeypatch):
    """A record that was half counted when the signal came is ended by the run that goes on."""
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, 'step', 2)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / 'run', **{'train.log_every': 3}).train()
    assert not read_log(tmp_path / 'run')
    small(tmp_path / 'run', 'auto', **{'train.log_every': 3}).train()
    assert [record['step'] for record in read_log(tmp_path / 'run')] == [3, 4, 6, 8]


# As a user's own processes ---------------------------------------------------------------------------------------------


QUICK = [
    '--device',
    'cpu',
    '--work-dir',
    'work',
    '--cfg-options',
    'train.max_epochs=2',
    'train.log_every=1',
    'evaluation.before=False',
]


def begun(command, cwd, ready, **environment):
    """A process in a group of its own, as a terminal makes one, when `ready()` holds."""
    own = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1') | environment
    child = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=own,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not ready():
        assert child.poll() is None, child.communicate()
    return child


def lines(path):
    return path.read_text().count('\n') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize('number', NUMBERS, ids=lambda number: number.name)
def test_a_command(tmp_path, number):
    """Exit code 128 + n, and a line that goes on; the signal goes to the group, as from a terminal, so
    to the loader's workers too.
    """
    # each step takes a while
    command = [
        ROOT / 'tools/train.py',
        ROOT / 'configs/quickstart.py',
        *QUICK,
        'train.dataloader.workers_per_gpu=2',
        'train.checkpoint.every_steps=1',
    ]
    child = begun(command, tmp_path, lambda: (tmp_path / 'work/checkpoints/step-00000002').exists())
    os.killpg(child.pid, number)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 128 + number, err
    assert (
        f'{number.name}: the run is saved after step' in err
        and err.count('the run ends after this step') == 1
        and 'Traceback' not in err + out
        and 'DataLoader' not in err
    )
    line = next(line for line in err.splitlines() if 'To go on: ' in line).partition('To go on: ')[2]
    words = shlex.split(line)
    assert words[0] == 'python' and words[-4:] == ['--work-dir', 'work', '--resume', 'auto']
    assert words.count('--work-dir') == 1
    again = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / 'work/summary.json').read_text())['steps'] == 20


@pytest.mark.slow
@pytest.mark.parametrize('number', NUMBERS, ids=lambda number: number.name)
def test_a_signal_while_modules_are_imported(tmp_path, number):
    """No traceback: a module of the user's own stands for the seconds that torch takes."""
    (tmp_path / 'torch.py').write_text(
        'import pathlib, time\npathlib.Path("ready").touch()\nwhile True: time.sleep(0.01)\n'
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    child = begun(
        [ROOT / 'tools/train.py', ROOT / 'configs/quickstart.py'],
        tmp_path,
        (tmp_path / 'ready').exists,
        PYTHONPATH=path,
    )
    os.killpg(child.pid, number)
    out, err = child.communicate(timeout=100)
    assert (child.returncode, out, err) == (128 + number, '', 'stopped\n')


@pytest.mark.slow
@pytest.mark.parametrize('number', NUMBERS, ids=lambda number: number.name)
def test_two_processes(tmp_path, number):
    """torchrun sends the signal on to both. Both end at the same step, and two go on from there."""
    run = [
        *TWO_PROCESSES,
        ROOT / 'tools/train.py',
        ROOT / 'configs/quickstart.py',
        *QUICK,
        'train.checkpoint.every_steps=1',
    ]
    child = begun(run, tmp_path, lambda: (tmp_path / 'work/checkpoints/step-00000002').exists())
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=100)
    assert f'{number.name}: the run is saved after step' in err, err
    assert err.count('the run is saved after step') == 1
    newest = list_checkpoints(tmp_path / 'work/checkpoints')[-1]
    step = load_checkpoint(newest)[0].step
    assert f'saved after step {step}.' in err and 2 <= step < 10
    again = subprocess.run(
        [sys.executable, *map(str, run), '--resume', 'auto'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / 'work/summary.json').read_text())['steps'] == 10


def stop_everything(folder, count):
    """Of a child process: trains with everything random turned on, and gets SIGTERM within step `count`."""
    accumulate, calls = Learner._accumulate, []

    def called(*args):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(*args)

    Learner._accumulate = called
    train_everything(folder, 'auto')


@pytest.mark.slow
def test_stopped_again_and_again(process, tmp_path):
    """With everything random turned on: mixup, EMA, workers, accumulation, the best epoch."""
    for name, counts in (('whole', []), ('run', [1, 2, 3, 1, 4])):
        for count in [*counts, None]:
            child = (
                process(stop_everything, tmp_path / name, count)
                if count
                else process(train_everything, tmp_path / name, 'auto')
            )
            child.join()
            assert child.exitcode == (-signal.SIGTERM if count else 0)
    assert result(tmp_path / 'run') == result(tmp_path / 'whole')
