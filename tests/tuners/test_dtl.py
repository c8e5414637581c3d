"""DTL against its equation, block by block, and its start."""

import pytest
import torch
import torch.nn.functional as F

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
