"""Losses against formulas, and what a loss refuses."""

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.errors import UserError
from vet.registry import LOSSES

NAMES = ['a', 'b', 'c']
OUTPUTS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
LABELS = torch.tensor([0, 2])
SETS = torch.tensor([[1, 0, 1], [0, 0, 0]])


def loss(entry, kind='SingleLabel', counts=([6, 3, 1], 10), names=NAMES, **options):
    return Loss(entry, build_objective(dict(type=kind), names), counts=lambda: counts, **options)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_balanced_weights_are_those_of_scikit_learn():
    weights = torch.tensor(
        compute_class_weight('balanced', classes=np.arange(3), y=[0] * 6 + [1] * 3 + [2]), dtype=torch.float32
    )
    found = loss(dict(type='CrossEntropyLoss', class_weight='balanced'))(OUTPUTS, LABELS)
    close(found, weights[LABELS] * F.cross_entropy(OUTPUTS, LABELS, reduction='none'))
    same = loss(dict(type='CrossEntropyLoss', class_weight=weights.tolist()))(OUTPUTS, LABELS)
    close(found, same)


def test_logit_adjustment_adds_the_logarithm_of_the_shares():
    shares = torch.tensor([0.6, 0.3, 0.1]).log()
    found = loss(dict(type='LogitAdjustedLoss', tau=2.0))(OUTPUTS, LABELS)
    close(found, F.cross_entropy(OUTPUTS + 2 * shares, LABELS, reduction='none'))


def test_the_focal_loss():
    p = OUTPUTS.softmax(1)[range(2), LABELS]
    close(loss(dict(type='FocalLoss', gamma=2.0))(OUTPUTS, LABELS), -((1 - p) ** 2) * p.log())
    soft = F.one_hot(LABELS, 3).float()
    close(
        loss(dict(type='FocalLoss', gamma=0.0))(OUTPUTS, soft),
        F.cross_entropy(OUTPUTS, soft, reduction='none'),
    )
    q = torch.where(SETS > 0, OUTPUTS.sigmoid(), 1 - OUTPUTS.sigmoid())
    close(loss(dict(type='FocalLoss'), 'MultiLabel')(OUTPUTS, SETS), (-((1 - q) ** 2) * q.log()).sum(1))


def test_binary_cross_entropy_with_positive_weights():
    target = SETS.float() * 0.8 + 0.1
    weights = torch.tensor([4 / 6, 7 / 3, 9.0])
    plain = weights * target * OUTPUTS.sigmoid().log() + (1 - target) * (1 - OUTPUTS.sigmoid()).log()
    entry = dict(type='BCEWithLogitsLoss', pos_weight='balanced')
    close(loss(entry, 'MultiLabel', label_smoothing=0.2)(OUTPUTS, SETS), -plain.mean(1))


def test_the_asymmetric_loss_counts_no_class_that_is_surely_missing():
    found = loss(dict(type='AsymmetricLoss', clip=0.05), 'MultiLabel')(OUTPUTS - 10, torch.zeros(2, 3))
    close(found, torch.zeros(2))


@pytest.mark.parametrize(
    'name, function',
    [
        ('MSELoss', F.mse_loss),
        ('L1Loss', F.l1_loss),
        ('HuberLoss', F.huber_loss),
        ('SmoothL1Loss', F.smooth_l1_loss),
    ],
)
def test_losses_of_numbers_compare_standardised_numbers(name, function):
    objective = build_objective(dict(type='Regression', mean=[100.0, 0.0], std=[10.0, 0.1]), ['x', 'y'])
    targets = torch.tensor([[110.0, 0.2], [90.0, 0.0]])
    found = Loss(dict(type=name), objective)(objective.finish(OUTPUTS[:, :2]), targets)
    wanted = function(OUTPUTS[:, :2], torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), reduction='none').mean(1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


LIBRARIES = [
    (timm.loss, 'LabelSmoothingCrossEntropy', dict(smoothing=0.2), LABELS),
    (timm.loss, 'SoftTargetCrossEntropy', {}, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]])),
    (timm.loss, 'PolyCrossEntropy', dict(epsilon=1.5), LABELS),
    (timm.loss, 'PolyBinaryCrossEntropy', dict(epsilon=0.5, gamma=2.0, alpha=0.3), SETS),
    (timm.loss, 'AsymmetricLossSingleLabel', dict(gamma_neg=3.0, gamma_pos=0.5), LABELS),
    (timm.loss, 'ZlprLoss', {}, SETS),
    (torch.nn, 'MultiMarginLoss', dict(p=2, margin=0.5), LABELS),
    (torch.nn, 'MultiLabelSoftMarginLoss', {}, SETS.float()),
]


@pytest.mark.parametrize('library, name, options, targets', LIBRARIES)
def test_a_loss_has_the_mean_of_its_library(library, name, options, targets):
    smoothing = dict(eps=0.0) if name == 'AsymmetricLossSingleLabel' else {}
    wanted = getattr(library, name)(**options, **smoothing)(OUTPUTS, targets)
    kind = 'MultiLabel' if LOSSES.find(name).targets == 'a set of classes' else 'SingleLabel'
    found = loss(dict(type=name, **options), kind)(OUTPUTS, targets)
    assert found.shape == (2,)
    close(found.mean(), wanted)


class OneNumber:
    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


class NoGradient:
    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs.detach(), targets, reduction='none')


class Failing:
    def __call__(self, outputs, targets):
        raise KeyError('no')


class NoTensor:
    def __call__(self, outputs, targets):
        return [0.0] * len(outputs)


def a_function(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction='none')


class OfSix:
    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction='none').reshape(6)


@pytest.mark.parametrize(
    'entry, kind, message',
    [
        (
            dict(type='MSELoss'),
            'SingleLabel',
            "'MSELoss' is for targets that are numbers, but.*CrossEntropyLoss",
        ),
        (dict(type='CrossEntropyLoss'), 'MultiLabel', 'is for targets that are one class.*BCEWithLogitsLoss'),
        (dict(type='BCEWithLogitsLoss'), 'Regression', 'Losses for such targets: .*HuberLoss.*MSELoss'),
        (
            dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0]),
            'SingleLabel',
            'has 2 weights, but there are 3 cl',
        ),
        (dict(type='CrossEntropyLoss', class_weight=[0, 0, 0]), 'SingleLabel', 'class_weight has only zeros'),
        (
            dict(type='OneNumber'),
            'SingleLabel',
            r'gives a tensor of shape \(\) for 6 images.*reduction="none"',
        ),
        (dict(type='NoGradient'), 'SingleLabel', 'has no gradient, so that nothing would train'),
        (dict(type='Failing'), 'SingleLabel', r"'Failing' fails on outputs \(6, 3\).*KeyError"),
        (dict(type='NoTensor'), 'SingleLabel', "'NoTensor' gives .0.0.*; a loss gives a tensor"),
        (
            dict(type='a_function'),
            'SingleLabel',
            "'a_function' is a function of outputs and targets; a loss is a class.*the method __call__",
        ),
        (dict(type='FocalLoss', alpha=0.25), 'SingleLabel', 'Leave alpha out'),
    ],
)
def test_refusals(monkeypatch, entry, kind, message):
    for plugin in (OneNumber, NoGradient, Failing, NoTensor, a_function):
        monkeypatch.setitem(LOSSES.module_dict, plugin.__name__, plugin)
    with pytest.raises(UserError, match=message):
        loss(entry, kind)


def test_a_loss_that_fails_later_is_named(monkeypatch):
    monkeypatch.setitem(LOSSES.module_dict, 'OfSix', OfSix)
    made = loss(dict(type='OfSix'))
    with pytest.raises(UserError, match=r"the loss 'OfSix' fails on outputs \(2, 3\) .* RuntimeError: shape"):
        made(OUTPUTS, LABELS)


def test_too_little_memory_is_no_fault_of_the_loss(monkeypatch):
    made = loss(dict(type='CrossEntropyLoss'))

    def too_little(outputs, targets):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(made, '_loss', too_little)
    with pytest.raises(torch.OutOfMemoryError):
        made(OUTPUTS, LABELS)


def test_label_smoothing_is_said_once():
    with pytest.raises(UserError, match="'FocalLoss' smooths no labels. Set train.label_smoothing to 0"):
        loss(dict(type='FocalLoss'), label_smoothing=0.1)
    with pytest.raises(
        UserError, match='train.label_smoothing is 0.1, but train.loss.label_smoothing is 0.2'
    ):
        loss(dict(type='CrossEntropyLoss', label_smoothing=0.2), label_smoothing=0.1)
