"""Which modules of a user's network count as FFNs, when no name tells."""

import pytest
import torch
from torch import nn

import vet
from vet.core.dry_run import dry_run
from vet.errors import UserError

pytestmark = pytest.mark.filterwarnings('ignore:vet knows no classifier')


class Branch(nn.Module):
    """Two layers: from 8 channels to `hidden`, and to `out`."""

    def __init__(self, hidden: int, out: int, size: int):
        super().__init__()
        self.first = nn.Conv2d(8, hidden, size, padding='same')
        self.second = nn.Conv2d(hidden, out, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Network(nn.Module):
    def __init__(self, hidden: int, out: int, size: int):
        super().__init__()
        self.stem, self.steps = nn.Conv2d(3, 8, 1), nn.ModuleList([Branch(hidden, out, size)])

    def forward(self, images):
        return self.steps[0](self.stem(images)).mean((2, 3))


def sites(*sizes):
    torch.manual_seed(0)
    tuned = vet.tune(Network(*sizes), vet.Adapter(width=2, at='mlp'), example=torch.zeros(1, 3, 4, 4))
    return list(tuned.trainable())


def test_a_sum_comes_from_both_layers_that_make_it():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.left(x) + self.right(x))

    calls = dry_run(Sum(), torch.ones(1, 4))
    assert calls['last'].layers.before == ('left', 'right')


def test_two_layers_that_widen_and_come_back_are_an_ffn():
    assert all('steps' in name for name in sites(16, 8, 1))


@pytest.mark.parametrize('sizes', [(4, 8, 1), (8, 8, 1), (16, 12, 1), (16, 8, 3)], ids=str)
def test_what_narrows_or_changes_the_width_or_sees_neighbours_is_none(sizes):
    with pytest.raises(UserError, match='mlp'):
        sites(*sizes)
