"""Shares of classes as targets of SingleLabel."""

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits
from tests.objectives.conftest import trainer_of
from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.datasets.base import ImageDataset
from vet.errors import UserError
from vet.registry import LOSSES
from vet.targets import as_class

NAMES = ['a', 'b', 'c']


class Shares(SmallDigits):
    """Digits whose targets are 0.8 for the class, and 0.05 for each other class."""

    def __init__(self, split, wrong=None):
        super().__init__(split)
        self.targets = [np.where(np.arange(5) == label, 0.8, 0.05) for label in self.targets]
        if wrong is not None:
            self.targets[3] = wrong
        self.samples = [(source, target) for (source, _), target in zip(self.samples, self.targets)]


@pytest.mark.parametrize(
    'target',
    [
        [0.2, 0.3, 0.5],
        (0.2, 0.3, 0.5),
        np.array([0.2, 0.3, 0.5]),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    ],
)
def test_forms_of_shares(target):
    found = as_class(target, NAMES, str)
    assert found == (0.2, 0.3, 0.5) == as_class(found, NAMES, str)
    assert as_class([0.0, 1.0, 0.0], NAMES, str) == (0, 1, 0) and as_class(np.int64(2), NAMES, str) == 2


@pytest.mark.parametrize(
    'target, message',
    [
        ([1, 0, 1], r'has the label \[1, 0, 1\] \(list\).*type="MultiLabel"'),
        ([1.0, 0.0, 1.0], r'has the label \[1.0, 0.0, 1.0\] \(list\).*type="MultiLabel"'),
        ([0, 1, 0], r'has the label \[0, 1, 0\] \(list\)'),
        ([0.0, 0.0, 0.0], r'has the label'),
        ([0.5, 0.5], r'has the label \[0.5, 0.5\]'),
        ([0.5, 0.2, 0.1], 'image 3 has shares of the 3 classes that sum to 0.8: .*Divide the shares'),
        ([0.5, -0.5, 1.0], "image 3 has the share -0.5 for the class 'b'; a share is a number from 0 to 1"),
        ([0.5, float('nan'), 0.5], "has the share nan for the class 'b'"),
        ([20.5, 3.5, 1.0], "has the share 20.5 for the class 'a'.*Regression"),
    ],
)
def test_refusals(target, message):
    with pytest.raises(UserError, match=message):
        as_class(target, NAMES, lambda: 'image 3')


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {},
    {'train.loss': dict(type='FocalLoss'), 'evaluation.select': 'best'},
    {'train.loss': dict(type='LogitAdjustedLoss'), 'train.mixup': 0.3, 'model.head': dict(type='LDA')},
    {
        'train.loss': dict(type='CrossEntropyLoss', class_weight='balanced'),
        'train.sampler': dict(type='ClassBalanced'),
    },
])  # fmt: skip
def test_a_run(tmp_path, options):
    trainer = trainer_of(tmp_path / 'run', Shares, **options)
    summary = trainer.train()
    assert summary['accuracy'] > 0.3
    page = (tmp_path / 'run' / 'predictions.npz').read_bytes()
    assert page and trainer.evaluate()['accuracy'] == summary['accuracy']


def test_shares_that_are_certain_train_as_classes(tmp_path):
    class Certain(Shares):
        def __init__(self, split):
            super().__init__(split)
            self.targets = [np.eye(5)[target.argmax()] for target in self.targets]
            self.samples = [(source, target) for (source, _), target in zip(self.samples, self.targets)]

    heads = []
    for kind in (SmallDigits, Certain):
        trainer = trainer_of(tmp_path / kind.__name__, kind, **{'train.max_epochs': 1})
        trainer.train()
        heads.append(trainer.model.head.fc.weight)
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-5)


class Margin:
    targets = 'one class'

    def __call__(self, outputs, targets):
        return torch.nn.functional.multi_margin_loss(outputs, targets, reduction='none')


def test_a_loss_of_classes_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES.module_dict, 'Margin', Margin)
    loss = Loss(dict(type='Margin'), build_objective(None, NAMES))
    with pytest.raises(UserError, match="the loss 'Margin' takes no mixtures of targets"):
        loss.refuse_mixtures()
    for kind, options in ((Shares, {}), (SmallDigits, {'train.mixup': 0.2})):
        trainer = trainer_of(tmp_path / 'run', kind, **{'train.loss': dict(type='Margin')}, **options)
        with pytest.raises(UserError, match="'Margin' takes no mixtures.*such as 'CrossEntropyLoss'"):
            trainer.train()
    assert not (tmp_path / 'run').exists()


def test_a_wrong_row_stops_a_run_before_its_first_step(tmp_path):
    def kind(split):
        return Shares(split, np.array([0.5, 0.1, 0, 0, 0]))

    with pytest.raises(UserError, match='image 3 of Shares .*sum to 0.6'):
        trainer_of(tmp_path / 'run', kind)


class Two(ImageDataset):
    """Images with targets of two forms, without `targets`."""

    def __init__(self, split):
        pixels = np.full((8, 8), split == 'test', np.uint8)
        super().__init__(['a', 'b'], [(pixels, 1), (pixels, np.array([0.5, 0.5]))] * 3)
        del self.targets


def test_targets_of_two_forms(tmp_path):
    with pytest.raises(UserError, match=r'image 1 of Two has the target .*0.5, 0.5.*Give all images'):
        trainer_of(tmp_path / 'run', Two).train()
