"""The linear head: its numbers, its start and its refusal."""

import pytest
import torch

from vet.errors import UserError
from vet.registry import HEADS


def head(**config: object):
    return HEADS.build(dict(type='Linear', **config), in_features=5)


def test_logits_are_W_f_plus_b():
    torch.manual_seed(0)
    linear = head(num_classes=3)
    features = torch.randn(2, 5)
    expected = torch.stack([linear.fc.weight @ row + linear.fc.bias for row in features])
    assert torch.allclose(linear(features), expected, atol=1e-6)
    assert sum(p.numel() for p in linear.parameters()) == 3 * 5 + 3


def test_starts_small_with_bias_zero():
    torch.manual_seed(0)
    linear = HEADS.build(dict(type='ClassifierHead', num_classes=200), in_features=64)
    assert linear.fc.weight.std().item() == pytest.approx(0.02, rel=0.05) and not linear.fc.bias.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_computes_in_float32_under_half_precision(dtype):
    linear = head(num_classes=3)
    features = torch.randn(4, 5).to(dtype)
    with torch.autocast('cpu', dtype):
        logits = linear(features)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, linear(features.float()))


def test_dropout_is_of_the_features_in_training_alone():
    torch.manual_seed(0)
    linear = head(num_classes=3, dropout=0.5)
    features = torch.ones(64, 5)
    assert len({tuple(row) for row in linear.train()(features).tolist()}) > 1
    assert len({tuple(row) for row in linear.eval()(features).tolist()}) == 1


@pytest.mark.parametrize('classes', [0, -2])
def test_no_classes_is_refused(classes):
    with pytest.raises(UserError, match=f'num_classes is {classes}; it must be'):
        head(num_classes=classes)
