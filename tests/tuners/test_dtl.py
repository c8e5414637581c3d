"""DTL against its equation, block by block, and its start."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tests.nets import images, tiny, tuned
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def expected(network, tuner, x, kernel=0, first=1, beta=100.0):
    """The blocks of a tiny ViT with a side network, computed one after the other."""
    side = 0
    for number, block in enumerate(network.blocks):
        collect = tuner.deltas[f'blocks/{number}']
        side = side + x @ collect.A.T @ collect.B.T
        x = block(x)
        if number >= first:
            h = side * torch.sigmoid(beta * side)
            if kernel:
                conv = tuner.deltas['shared']['17x32']
                patches = h[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
                fused = F.conv2d(patches, conv.weight, padding='same', groups=32)
                h = torch.cat([h[:, :1], fused.flatten(2).transpose(1, 2)], 1)
            x = x + h
    return x


@pytest.mark.parametrize('kernel', [0, 3, 4])
def test_the_side_is_added_from_the_middle_on(kernel):
    backbone, tuner = tuned('vit', type='DTL', rank=3, kernel=kernel, beta=5.0)
    plain = tiny('vit').eval().double().network
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    found = x
    for block in backbone.network.blocks:
        found = block(found)
    assert torch.allclose(found, expected(plain, tuner, x, kernel, beta=5.0), atol=1e-10)


def test_the_start_is_the_frozen_output_and_early_blocks_need_no_gradient():
    backbone = tiny('vit').eval()
    before = backbone(images(2))
    tuner = TUNERS.build(dict(type='DTL', kernel=3))
    tuner.attach(backbone)
    assert torch.equal(backbone(images(2)), before)
    seen = []
    backbone.network.blocks[0].register_forward_hook(lambda module, args, y: seen.append(y.requires_grad))
    backbone(images(2))
    assert seen == [False]


def test_blocks_that_are_computed_again_give_the_same_gradients():
    backbone, tuner = tuned('vit', type='DTL', rank=3, first=0)
    x = torch.randn(2, 17, 32, dtype=torch.float64, requires_grad=True)
    found = []
    for again in (False, True):
        y = x
        for block in backbone.network.blocks:
            y = checkpoint(block, y, use_reentrant=False) if again else block(y)
        found.append(torch.autograd.grad(y.square().sum(), [p for _, p in tuner.trainable()]))
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*found))


def test_copies_and_pickles_hold_no_activations():
    backbone, tuner = tuned('vit', type='DTL', rank=3)
    features = backbone(images(2).double())
    assert tuner.sides
    for again in (copy.deepcopy(tuner), pickle.loads(pickle.dumps(tuner))):
        assert not again.sides
        assert torch.equal(again.backbone(images(2).double()), features)
    with torch.no_grad():
        backbone(images(2).double())
    assert not tuner.sides


@pytest.mark.parametrize('kernel, number', [(0, 36_864), (3, 43_776)])
def test_counts_on_vit_b16(count_on_vit_b16, kernel, number):
    assert count_on_vit_b16(type='DTL', kernel=kernel) == number


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(first=9), 'vit', UserError, 'first is 9, but there are 3 sites'),
        (dict(), 'resnet', NoSiteError, 'DTL needs blocks of tokens or maps that keep their shape'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='DTL', **config)).attach(tiny(family))
