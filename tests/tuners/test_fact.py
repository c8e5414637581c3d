"""FacT against its equation in float64, and its counts."""

import pytest
import torch
from torch import nn

from tests.nets import tiny
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


@pytest.mark.parametrize('variant', ['tt', 'tk'])
def test_every_matrix_has_its_own_middle_between_shared_ends(variant):
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    tuner = TUNERS.build(dict(type='FacT', rank=3, variant=variant, scale=0.5))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    shared = tuner.deltas['shared']
    for parameter in shared.parameters():
        nn.init.normal_(parameter)

    def update(i: int) -> torch.Tensor:
        """The i-th of the 36 matrices (out, in)"""
        if variant == 'tt':
            middle = shared.Sigma[i]
        else:
            middle = sum(shared.P[i, k] * shared.core[k] for k in range(3))
        return 0.5 * (shared.U @ middle @ shared.V.T).T

    order = {'attn.qkv': range(3), 'attn.proj': range(3, 4), 'mlp.fc1': range(4, 8), 'mlp.fc2': range(8, 12)}
    seen = []
    for b, block in enumerate(backbone.network.blocks):
        for name in order:
            layer, which = block.get_submodule(name), tuner.places[f'blocks.{b}.{name}']
            parts = [update(i) for i in range(which.start, which.stop)]
            assert len(parts) == len(order[name])
            seen += range(which.start, which.stop)
            W = layer.weight + torch.cat(parts, 1 if name == 'mlp.fc2' else 0)
            x = torch.randn(5, layer.in_features, dtype=torch.float64)
            assert torch.allclose(layer(x), x @ W.T + layer.bias, rtol=0, atol=1e-8)
            assert torch.allclose(
                layer._reweighted.edits[0].delta(layer.weight, layer.bias)[0], W, rtol=0, atol=1e-8
            )
    assert sorted(seen) == list(range(36))


@pytest.mark.parametrize(
    'config, number',
    [(dict(rank=32), 86_528), (dict(rank=16, variant='tt'), 2 * 768 * 16 + 144 * 16**2)],
    ids=str,
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(type='FacT', **config) == number


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (
            dict(),
            'swin',
            NoSiteError,
            r"FacT needs weights made of \(16, 16\) matrices, one width .*\(96, 32\).*'layers\.1\.blocks\.0",
        ),
        (dict(at='weight'), 'resnet', NoSiteError, r'FacT needs weights made of .*layer1\.0\.conv1'),
        (dict(), 'resnet', UnknownNameError, r"'attn\.qkv'.*roles of resnet18"),
        (dict(variant='cp'), 'vit', UnknownNameError, r"variant of tuner 'FacT' 'cp'.*Allowed: tk, tt"),
        (dict(rank=0), 'vit', UserError, r'rank is 0; it must be at least 1'),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, family, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='FacT', **config)).attach(tiny(family))
