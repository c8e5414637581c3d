"""Values that a small fault in a tuner would change, and that no other test looks at."""

import torch

from tests.nets import VIT, images, timm_net, tiny
from vet.registry import TUNERS


def test_convpass_starts_with_no_bias():
    tuner = TUNERS.build(dict(type='Convpass', width=3))
    tuner.attach(tiny('vit'))
    for delta in tuner.deltas.values():
        assert not any(layer.bias.any() for layer in (delta.down, delta.conv, delta.up))


def test_a_ladder_beside_one_block():
    backbone = timm_net('vit_tiny_patch16_224', **VIT | dict(depth=1)).eval()
    frozen, tuner = backbone(images()), TUNERS.build(dict(type='LadderSide', reduction=4, heads=2))
    tuner.attach(backbone)
    assert torch.equal(backbone(images()), frozen)
