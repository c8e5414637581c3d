"""Tuners whose tensors flow beside the blocks: blocks that are computed again, copies and pickles."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.nets import images, tuned

BESIDE = [dict(type='DTL', rank=3), dict(type='DTL', rank=3, first=0), dict(type='ResTuningBypass', width=3)]


@pytest.mark.parametrize('config', BESIDE, ids=str)
def test_blocks_that_are_computed_again_give_the_same_gradients(config):
    backbone, tuner = tuned('vit', **config)
    x = torch.randn(2, 17, 32, dtype=torch.float64, requires_grad=True)
    found = []
    for again in (False, True):
        y = x
        for block in backbone.network.blocks:
            y = checkpoint(block, y, use_reentrant=False) if again else block(y)
        found.append(torch.autograd.grad(y.square().sum(), [p for _, p in tuner.trainable()]))
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*found))


@pytest.mark.parametrize('config', BESIDE, ids=str)
def test_copies_and_pickles_hold_no_activations(config):
    backbone, tuner = tuned('vit', **config)
    features = backbone(images(2).double())
    assert tuner.sides
    for again in (copy.deepcopy(tuner), pickle.loads(pickle.dumps(tuner))):
        assert not again.sides
        assert torch.equal(again.backbone(images(2).double()), features)
    with torch.no_grad():
        backbone(images(2).double())
    assert not tuner.sides
