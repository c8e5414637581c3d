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


def test_starts_are_those_of_linear_maps():
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='FacT', rank=16, variant='tt'))
    tuner.attach(tiny('vit'))
    shared = tuner.deltas['shared']
    assert not shared.V.any()
    assert shared.U.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.1)
    assert shared.U.abs().max() <= 32**-0.5
    fc2 = torch.cat([shared.Sigma[tuner.places[f'blocks.{i}.mlp.fc2']] for i in range(3)])
    others = torch.cat([shared.Sigma[tuner.places[f'blocks.{i}.mlp.fc1']] for i in range(3)])
    for found, fan in ((others, 16), (fc2, 64)):
        assert found.std().item() == pytest.approx(fan**-0.5 / 3**0.5, rel=0.05)
        assert found.abs().max() <= fan**-0.5


@pytest.mark.parametrize('name, parts', [('attn.qkv', 3), ('mlp.fc1', 4), ('mlp.fc2', 1)])
def test_dropout_stands_between_sigma_and_v(name, parts):
    """Without dropout, `split` gives the weight's product. With it, each part drops its own r numbers."""
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    tuner = TUNERS.build(dict(type='FacT', rank=3, variant='tt', dropout=0.5, at=name))
    tuner.attach(backbone)
    backbone.double(), tuner.double().train()
    shared = tuner.deltas['shared']
    for parameter in shared.parameters():
        nn.init.normal_(parameter)
    layer = backbone.network.blocks[1].get_submodule(name)
    x, Sigma = (
        torch.randn(7, layer.in_features, dtype=torch.float64),
        shared.Sigma[tuner.places[f'blocks.1.{name}']],
    )
    torch.manual_seed(1)
    found = layer(x)
    if name == 'mlp.fc2':
        h = sum(part @ shared.U @ middle for part, middle in zip(x.chunk(4, -1), Sigma))[:, None]
    else:
        h = torch.stack([x @ shared.U @ middle for middle in Sigma], 1)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones_like(h if parts > 1 else h[:, 0]), 0.5).view_as(h)
    expected = x @ layer.weight.T + layer.bias + ((h * mask) @ shared.V.T).flatten(1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-8) and 0 < (mask == 0).sum() < mask.numel()
    tuner.eval()
    exact = x @ layer.weight.T + layer.bias + (h @ shared.V.T).flatten(1)
    assert torch.allclose(layer(x), exact, rtol=0, atol=1e-8)


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
