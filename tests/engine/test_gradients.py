"""A tuner of which nothing reads the numbers is told by name, after the first step or after ten; one
that says why is not refused.
"""

import pytest
import torch
from torch import nn

from tests.engine.runs import small
from tests.engine.test_learner import batches_of, make, step
from vet.core.tuner import Tuner
from vet.engine.feed.batches import Order
from vet.errors import TrainingError


class Parts(nn.Module):
    """y + read, with a parameter that nothing reads, one that is multiplied by zero, and two that wait
    for each other.
    """

    def __init__(self, channels, names):
        super().__init__()
        starts = dict(read=0.0, unread=1.0, times_zero=1.0, first=0.0, second=1.0)
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.full((channels,), starts.get(name, 1.0))))

    def forward(self, x, y):
        if hasattr(self, 'read'):
            y = y + self.read
        if hasattr(self, 'times_zero'):
            y = y + 0.0 * self.times_zero
        # as B A of LoRA: B starts at zero
        return y + self.first * self.second if hasattr(self, 'first') else y


class Trial(Tuner):
    def __init__(self, *names):
        super().__init__('block[-1]')
        self.names = names

    def tune(self, site):
        self.after(site, Parts(site.out_shape[-1], self.names))


class Says(Trial):
    no_gradient = 'the other half is for another use'


def taken(tuner, steps, **options):
    learner = make(tuner, order=Order(8, 8, 1, seed=0), optimizer=dict(type='SGD', lr=0.1), **options)
    for number in range(steps):
        step(learner, batches_of(8), number)
    return learner


@pytest.mark.parametrize('names', [('read', 'unread'), ('unread',)])
def test_no_gradient_is_an_error_after_the_first_step(names):
    with pytest.raises(
        TrainingError, match=rf'1 of the {len(names)} tensors that Trial trains \(.*unread\) get no gradient'
    ):
        taken(Trial(*names), 1)


@pytest.mark.parametrize('count', [3, 4])
def test_three_names_are_listed(count):
    with pytest.raises(TrainingError) as told:
        taken(Trial(*(f'unread{i}' for i in range(count))), 1)
    assert str(told.value).count('unread') == 3
    assert (', …)' in str(told.value)) == (count > 3)


def test_nothing_was_stepped_when_it_is_told():
    learner = make(Trial('read', 'unread'))
    before = {name: value.clone() for name, value in learner.model.trained_state().items()}
    with pytest.raises(TrainingError):
        step(learner, batches_of(8))
    assert all(value.equal(before[name]) for name, value in learner.model.trained_state().items())


def test_a_reason_makes_it_a_warning(capsys):
    taken(Says('read', 'unread'), 3)
    assert (
        'Says trains (deltas.blocks.2.unread) get no gradient and do not change: the other half'
        in capsys.readouterr().err
    )
    with pytest.raises(TrainingError, match='1 of the 1 tensors that Says trains'):
        taken(Says('unread'), 1)


def test_zeros_alone_for_ten_steps(capsys):
    with pytest.raises(
        TrainingError,
        match='1 of the 1 tensors that Trial trains .*got only zeros as gradient in the first ste',
    ):
        taken(Trial('times_zero'), 10)
    taken(Trial('times_zero'), 9)
    assert 'zeros' not in capsys.readouterr().err
    taken(Trial('read', 'times_zero'), 10)
    assert (
        '1 of the 2 tensors that Trial trains (deltas.blocks.2.times_zero) got only zeros as gradient'
        in capsys.readouterr().err
    )


def test_zeros_alone_in_a_run_of_fewer_steps():
    with pytest.raises(TrainingError, match='only zeros'):
        taken(Trial('times_zero'), 4, max_epochs=4)
    taken(Trial('times_zero'), 2, max_epochs=2)


def test_a_zero_at_the_start_is_no_fault(capsys):
    """The gradient of what a zero is multiplied with is zero in the first step alone."""
    taken(Trial('first', 'second'), 10)
    taken('LoRA', 10)
    assert 'warning' not in capsys.readouterr().err


class Unread(Trial):
    def __init__(self):
        super().__init__('unread')


def test_every_stage_is_looked_at(tmp_path, register_tuner):
    register_tuner(Unread)
    stages = [dict(epochs=1, train='head.*'), dict(epochs=1)]
    trainer = small(tmp_path / 'run', **{'model.tuners': [dict(type='Unread')], 'train.stages': stages})
    with pytest.raises(TrainingError, match='that Unread trains .* get no gradient'):
        trainer.train()
    assert (tmp_path / 'run' / 'checkpoints' / 'step-00000004').is_dir()
