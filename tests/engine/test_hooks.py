"""custom_hooks: the points of a training, in their order, and what a hook may ask of the run."""

import mmengine.hooks
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import SmallDigits, build, config, ended, ended_after_a_break, small
from vet import register_hook
from vet.config import read_settings
from vet.engine.saving.log import read_log
from vet.errors import TrainingError, UserError
from vet.hooks.base import Hook
from vet.registry import HOOKS

EPOCH = [
    'before_train_epoch',
    *['before_train_iter', 'after_train_iter'] * 4,
    'after_train_epoch',
    'before_val_epoch',
    'after_val_epoch',
]


@pytest.fixture
def hook(monkeypatch):
    """Registers a class for one test, and gives the config entry."""

    def registered(kind):
        monkeypatch.setitem(HOOKS.module_dict, kind.__name__, kind)
        return {'custom_hooks': [dict(type=kind.__name__)]}

    return registered


def test_points_come_in_their_order(hook, tmp_path):
    calls = []

    class Tells(Hook):
        def __getattribute__(self, name):
            if name.startswith(('before_', 'after_')):
                return lambda runner, **given: calls.append((name, runner.epoch, runner.iter))
            return super().__getattribute__(name)

    options = {'train.max_epochs': 2, 'evaluation.select': 'best', 'evaluation.holdout': 0.1}
    small(tmp_path / 'run', **options, **hook(Tells)).train()
    names = [name for name, *_ in calls]
    assert names == ['before_run', *EPOCH, *EPOCH, 'before_test_epoch', 'after_test_epoch', 'after_run']
    assert calls[names.index('after_val_epoch')] == ('after_val_epoch', 1, 4)
    assert calls[-1] == ('after_run', 2, 8)


@pytest.mark.parametrize('options, warned', [({}, True), ({'evaluation.select': 'best'}, False)])
def test_a_hook_that_waits_for_a_validation_in_vain_is_named(hook, tmp_path, caplog, options, warned):
    class Waits(Hook):
        def after_val_epoch(self, runner, metrics):
            runner.stop()

    class Other(Hook):
        def after_train_epoch(self, runner):
            pass

    entries = [*hook(Waits)['custom_hooks'], *hook(Other)['custom_hooks']]
    small(tmp_path / 'run', custom_hooks=entries, **options).train()
    found = [line for line in caplog.messages if 'is never called' in line]
    wanted = "no validation images, so after_val_epoch of the hook 'Waits' is never called"
    assert len(found) == warned and all(wanted in line for line in found)


def test_a_hook_sees_the_results_of_the_test_and_the_weights_that_are_saved(hook, tmp_path):
    seen = {}

    class Sees(Hook):
        def after_test_epoch(self, runner, metrics):
            seen.update(
                metrics, weights={name: value.clone() for name, value in runner.model.trained_state().items()}
            )

    trainer = small(tmp_path / 'run', **{'train.ema': 0.5}, **hook(Sees))
    summary = trainer.train()
    assert seen['accuracy'] == summary['accuracy']
    saved = load_file(trainer.folder.path / 'output' / 'tuner.safetensors')
    assert saved.keys() and all(torch.equal(seen['weights'][name], value) for name, value in saved.items())


def test_a_hook_that_waits_for_a_test_in_vain_is_named(hook, tmp_path, caplog):
    class Waits(Hook):
        def before_test_epoch(self, runner):
            raise AssertionError

    options = {'train.max_epochs': 1, 'evaluation.before': False, 'dataset.test': None}
    build(tmp_path / 'run', data=dict(train_dataset=SmallDigits('train')), **options, **hook(Waits)).train()
    assert "no test images, so before_test_epoch of the hook 'Waits' is never called" in caplog.text


@pytest.mark.parametrize('base', [Hook, mmengine.hooks.Hook, object])
def test_a_point_that_vet_never_calls_is_refused(hook, tmp_path, base):
    class Waits(base):
        def after_train_iter(self, runner):
            pass

    small(tmp_path / 'fits', **hook(Waits))

    class Mistaken(Waits):
        def after_train(self, runner):
            pass

    with pytest.raises(
        UserError, match="'Mistaken' has the method 'after_train', which no run calls.*after_run"
    ):
        small(tmp_path / 'run', **hook(Mistaken)).train()


def test_hooks_that_only_look_change_nothing(hook, tmp_path):
    class Looks(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            assert outputs['lr'] > 0 and float(outputs['loss']) > 0 and not outputs['loss'].requires_grad
            assert batch_idx == (runner.iter - 1) % 4 and data_batch[0].images.shape[1:] == (3, 8, 8)

    assert ended(small(tmp_path / 'with', **hook(Looks))) == ended(small(tmp_path / 'without'))


def test_a_hook_logs_saves_and_stops(hook, tmp_path):
    class Asks:  # a class without the base, and points with fewer arguments
        def after_train_iter(self, runner):
            runner.log(twice=2.0 * runner.iter)
            if runner.iter == 2:
                runner.save()
            if runner.iter == 3:
                runner.stop()

        def after_run(self, runner):
            Asks.summary = dict(runner.summary)

    trainer = small(tmp_path / 'run', **{'train.max_epochs': 3, 'train.checkpoint.keep': 9}, **hook(Asks))
    summary = trainer.train()
    assert summary['steps'] == 3 and Asks.summary['accuracy'] == summary['accuracy']
    assert [line['twice'] for line in read_log(trainer.folder.path) if 'twice' in line] == [2, 4, 6]
    assert (trainer.folder.path / 'output' / 'tuner.safetensors').is_file()


def test_a_hooks_state_is_in_the_checkpoint(hook, tmp_path):
    class Counts(Hook):
        def __init__(self):
            self.steps = 0

        def after_train_iter(self, runner):
            self.steps += 1

        def state_dict(self):
            return dict(steps=self.steps)

        def load_state_dict(self, state):
            self.steps = state['steps']

        def after_run(self, runner):
            Counts.total = self.steps

    options = {'train.checkpoint.every_steps': 1, **hook(Counts)}
    ended_after_a_break(lambda resume: small(tmp_path / 'run', resume, **options), 6)
    assert Counts.total == 8


@pytest.mark.parametrize('point', ['before_run', 'after_train_iter', 'after_val_epoch', 'after_run'])
def test_a_hook_that_fails_is_named_with_the_point(hook, tmp_path, point):
    Broken = type('Broken', (Hook,), {point: lambda self, runner: 1 / 0})
    with pytest.raises(TrainingError, match=f"the hook 'Broken' fails at {point}, after step .*ZeroDivision"):
        small(
            tmp_path / 'run', **{'evaluation.select': 'best', 'evaluation.holdout': 0.1}, **hook(Broken)
        ).train()


def test_a_number_that_is_none_is_told(hook, tmp_path):
    Broken = type('Broken', (Hook,), dict(before_run=lambda self, runner: runner.log(x='text')))
    with pytest.raises(TrainingError, match=r"log\(x='text'\) gives no number; give .* of one\. Correct the"):
        small(tmp_path / 'run', **hook(Broken)).train()


def test_what_is_no_hook_is_refused(hook, tmp_path):
    with pytest.raises(UserError, match="the hook 'Empty' has none of the points before_run"):
        small(tmp_path / 'run', **hook(type('Empty', (), {})))
    with pytest.raises(UserError, match="unknown hook 'StopAftr'.* Did you mean 'StopAfter'"):
        build(tmp_path / 'other', custom_hooks=[dict(type='StopAftr')])
    with pytest.raises(UserError, match='custom_hooks'):
        read_settings(config(custom_hooks=3))


def test_a_user_registers_a_hook(monkeypatch):
    @register_hook
    class Mine(Hook):
        pass

    assert HOOKS.module_dict.pop('Mine') is Mine


def test_stop_after_some_minutes(tmp_path):
    """After 0.0001 minutes, the first step is the last."""
    entry = dict(type='StopAfter', minutes=0.0001)
    summary = small(tmp_path / 'run', **{'train.max_epochs': 50, 'custom_hooks': [entry]}).train()
    assert summary['steps'] < 200 and 'accuracy' in summary
