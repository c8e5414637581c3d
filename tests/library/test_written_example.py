"""A folder holds the shapes of the example, so that vet.load needs none; it may say nothing else."""

import json

import pytest
import torch
from torch import nn

import vet
from tests.library.networks import images
from vet.core.example import Example
from vet.core.written_example import EXAMPLE, example_of, written
from vet.errors import DataError, UserError


class Gated(nn.Module):
    """Takes images of 8 pixels by keyword, a mask, and a setting."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mid, self.fc = nn.Linear(192, 8), nn.Linear(8, 4)

    def forward(self, *, picture, mask, how):
        assert how == 'mean' and mask.dtype == torch.bool and mask.all()
        return self.fc(self.mid(picture.flatten(1)) * mask)


def test_load_needs_no_example(tmp_path):
    given = dict(picture=images(2, 8), mask=torch.ones(2, 8, dtype=torch.bool), how='mean')
    tuned = vet.tune(Gated(), vet.LoRA(2, at='mid'), train='fc', example=given)
    tuned.save(tmp_path / 'it')
    said = json.loads((tmp_path / 'it' / 'configuration.json').read_text())['network']['example']
    wanted = dict(picture='float32 [1, 3, 8, 8]', mask='bool [1, 8] of 1', how='mean')
    assert said == dict(args=[], kwargs=wanted)
    assert torch.equal(vet.load(tmp_path / 'it', Gated())(**given), tuned(**given))


class Pair(nn.Module):
    """Takes one argument, a tuple of two batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mid, self.fc = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, pair):
        assert isinstance(pair, tuple)
        left, right = pair
        return self.fc(self.mid(left) * self.mid(right))


def test_one_argument_that_is_a_tuple_stays_a_tuple(tmp_path):
    pair = torch.randn(3, 12), torch.randn(3, 12)
    tuned = vet.tune(Pair(), vet.LoRA(2, at='mid'), train='fc', example=(pair,))
    tuned.save(tmp_path / 'it')
    said = json.loads((tmp_path / 'it' / 'configuration.json').read_text())['network']['example']
    assert said == dict(args=[['()', 'float32 [1, 12]', 'float32 [1, 12]']], kwargs={})
    assert torch.equal(vet.load(tmp_path / 'it', Pair())(pair), tuned(pair))
    with pytest.raises(UserError, match=r'example=\(\(…, …\),\) for one argument that is a tuple'):
        vet.tune(Pair(), vet.LoRA(2, at='mid'), train='fc', example=pair)


def test_an_example_is_read_as_it_was_written():
    example = Example((images(1), [torch.zeros(3, 4, 4)]), dict(size=torch.tensor([[4, 4]]), flag=True))
    again = example_of(json.loads(json.dumps(written(example))))
    assert torch.equal(again.kwargs['size'], torch.tensor([[4, 4]])) and again.kwargs['flag'] is True
    assert again.args[0].shape == (1, 3, 32, 32) and again.args[1][0].shape == (3, 4, 4)
    assert written(Example((images(1), object()))) is None


@pytest.mark.parametrize(
    'value',
    [
        3,
        dict(args=[]),
        dict(args=[], kwargs={}),
        dict(args=['float32 [99999, 99999]'], kwargs={}),
        dict(args=['float32 [1, 3, 8, 8]'], kwargs={'a b': 1}),
        dict(args=['float32 [1, 3, 8, 8]', 'https://x.y/z'], kwargs={}),
        dict(args=['complex64 [1, 3, 8, 8]'], kwargs={}),
        dict(args=['float32 [1]'] * 1001, kwargs={}),
    ],
)
def test_a_folder_says_only_plain_examples(value, tmp_path):
    assert not EXAMPLE.allows(value)
    vet.tune(nn.Conv2d(3, 4, 3), vet.LoRA(1, at='*'), train='bias', example=images(1, 8)).save(
        tmp_path / 'it'
    )
    file = tmp_path / 'it' / 'configuration.json'
    configuration = json.loads(file.read_text())
    configuration['network']['example'] = value
    file.write_text(json.dumps(configuration))
    with pytest.raises(DataError, match='network.example .*; allowed: null, or a dict of args and kwargs'):
        vet.load(tmp_path / 'it', nn.Conv2d(3, 4, 3))
