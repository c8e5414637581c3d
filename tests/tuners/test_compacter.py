"""Compacter against its equation in float64, and its start."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.nets import images, tiny, tuned
from vet.errors import NoSiteError
from vet.registry import TUNERS


def test_a_layer_is_a_sum_of_kronecker_products():
    backbone, tuner = tuned('vit', type='Compacter', width=8, products=4, rank=2)
    mlp, plain = backbone.network.blocks[1].mlp, tiny('vit').eval().double().network.blocks[1].mlp
    delta, A = tuner.deltas['blocks/1/mlp'], tuner.deltas['shared'].A

    def layer(h, one):
        H = sum(torch.kron(A[i], one.s[i] @ one.t[i]) for i in range(4))
        return h @ H + one.b

    x = torch.randn(2, 17, 32, dtype=torch.float64)
    y = plain(x)
    assert torch.allclose(
        mlp(x), y + layer(F.gelu(layer(y, delta.down), approximate='tanh'), delta.up), atol=1e-10
    )
    assert len(tuner.deltas) == 1 + 2 * 3  # behind each attention and FFN


def test_the_start_is_near_the_identity():
    backbone = tiny('vit').eval()
    before = backbone(images(4))
    tuner = TUNERS.build(dict(type='Compacter', width=8))
    tuner.attach(backbone)
    difference = (backbone(images(4)) - before).abs().max()
    assert 0 < difference < 1e-2 * before.abs().max()
    A = tuner.deltas['shared'].A
    assert A.std().item() == pytest.approx(1e-4, rel=0.4)
    for key, delta in tuner.deltas.items():
        for layer in (delta.down, delta.up) if key != 'shared' else ():
            bounds = [math.sqrt(12 / sum(factor.shape[1:])) for factor in (layer.s, layer.t)]
            assert 0.7 * bounds[0] < layer.s.abs().max() <= bounds[0] and layer.t.abs().max() <= bounds[1]
            assert not layer.b.any()


def test_the_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='Compacter') == 24 * (2 * (768 + 24) + 24 + 768) + 4**3 == 57_088


def test_products_must_divide_the_channels():
    with pytest.raises(NoSiteError, match='channels and a width that 5 products divide'):
        TUNERS.build(dict(type='Compacter', products=5, width=10)).attach(tiny('vit'))
