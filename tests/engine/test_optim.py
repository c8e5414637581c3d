"""The ranges of optimizers' numbers: the largest value is taken, a larger value is refused by name."""

import pytest
from torch import nn

from vet.errors import UserError
from vet.registry import OPTIMIZERS


@pytest.mark.parametrize('name, largest', [('t0', 1e6), ('lambd', 1.0), ('lr', None)])
def test_numbers_have_a_largest_value(name, largest):
    weights = [nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight))]
    if largest is not None:
        OPTIMIZERS.build(dict(type='ASGD', **{name: largest}), weights)
    with pytest.raises(UserError, match=f'{name} '):
        OPTIMIZERS.build(dict(type='ASGD', **{name: (largest or 1e9) * 1.5}), weights)


def test_adagrad_starts_from_at_most_a_million():
    weights = [nn.Parameter(nn.Linear(1, 1).weight.detach())]
    OPTIMIZERS.build(dict(type='Adagrad', initial_accumulator_value=1e6), weights)
    with pytest.raises(UserError, match='initial_accumulator_value'):
        OPTIMIZERS.build(dict(type='Adagrad', initial_accumulator_value=1.5e6), weights)
