"""Two and three tuners on one backbone."""

import copy
import functools

import pytest
import torch

from tests.contract.cases import AfterBlocks, Case
from tests.contract.runs import LABELS, differing, gradients, leftovers, logits, snapshot, with_head
from tests.nets import images, tiny
from vet.core.model import ImageClassifier
from vet.registry import TUNERS


@functools.cache
def stack(case: Case, family: str) -> ImageClassifier:
    """A model with three tuners. Look at it, change only copies of it."""
    backbone = tiny(family)
    torch.manual_seed(5)
    low_rank = TUNERS.build(dict(type='LoRA', rank=2, at='weight'))
    return with_head(backbone, [low_rank, case.make(backbone), AfterBlocks()])


@pytest.fixture
def stacked(case, family, ran):
    return stack(case, family)


def test_three_tuners_start_as_the_second_alone(stacked, ran):
    assert (
        torch.equal(logits(stacked.backbone), ran.first_features) or not ran.model.tuners[0].identity_at_start
    )


def test_three_tuners_all_have_gradients(stacked):
    _, found = gradients(stacked, images(6), LABELS)
    for i, tuner in enumerate(stacked.tuners):
        mine = [g.abs().sum() for name, g in found.items() if name.startswith(f'tuners.{i}.')]
        assert sum(mine) > 0 or not list(tuner.trainable())


@pytest.mark.parametrize('order', [pytest.param((0, 1, 2), marks=pytest.mark.slow), (2, 0, 1)])
def test_detaching_a_stack_in_any_order_restores_the_network(stacked, ran, order):
    stacked = copy.deepcopy(stacked)
    with torch.no_grad():
        for parameter in stacked.trainable().values():
            parameter.add_(0.1)
    for i in order:
        stacked.tuners[i].detach()
    assert not differing(snapshot(stacked.backbone.network), ran.frozen)
    assert not leftovers(stacked.backbone.network)


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_stack_of_three_mergeable_tuners_merges(family):
    backbone = tiny(family)
    torch.manual_seed(6)
    tuners = [
        TUNERS.build(cfg)
        for cfg in (
            dict(type='LoRA', rank=2, at='weight'),
            dict(type='BitFit'),
            dict(type='LoRA', rank=3, alpha=1, at='weight'),
        )
    ]
    model = with_head(backbone, tuners)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before, frozen = logits(model.backbone), logits(tiny(family).eval())
    assert not torch.allclose(before, frozen, atol=1e-3)
    merged = logits(model.merge())
    assert (merged - before).abs().max() <= 1e-5 * before.abs().max()
    model.unmerge()
    assert torch.equal(logits(model.backbone), before)
