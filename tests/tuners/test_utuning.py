"""U-Tuning against its equation written out in float64."""

import math

import pytest
import torch

from tests.nets import tiny
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


@pytest.mark.parametrize(
    'family, name, operation',
    [
        ('vit', 'blocks.1.attn', 'attn'),
        ('vit', 'blocks.1.mlp', 'mlp'),
        ('vit', 'blocks.1', 'block'),
        ('torchvision-vit', 'encoder.layers.encoder_layer_0.mlp', 'mlp'),
        ('convnext', 'stages.2.blocks.0', 'block'),
        ('resnet', 'layer2.0', ['attn', 'mlp', 'block']),  # has blocks alone; this one strides
    ],
)
@pytest.mark.parametrize('scale', [0.5, 'channel'])
def test_tuner_is_added_to_the_frozen_operation(family, name, operation, scale):
    torch.manual_seed(0)
    backbone, tuner = (
        tiny(family).eval(),
        TUNERS.build(dict(type='UTuning', width=3, at=operation, scale=scale)),
    )
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.normal_()
    site, delta = backbone.sites.find(name)[0], tuner.deltas[name.replace('.', '/')]
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    read = x[:, :, ::2, ::2] if family == 'resnet' else x
    h = (read.permute(0, 2, 3, 1) if x.dim() == 4 else read) @ delta.down.weight.T + delta.down.bias
    u = (h * (1 + torch.erf(h / math.sqrt(2))) / 2 @ delta.up.weight.T + delta.up.bias) * delta.scale
    expected = tiny(family).eval().double().network.get_submodule(name)(x) + (
        u.permute(0, 3, 1, 2) if x.dim() == 4 else u
    )
    assert torch.allclose(site.module(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'at, count', [(['attn', 'mlp', 'block'], 470_304), ('block', 156_768), (['attn', 'mlp'], 313_536)]
)
def test_counts_on_vit_b16(count_on_vit_b16, at, count):
    assert count_on_vit_b16(type='UTuning', width=8, at=at) == count


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(scale='big'), 'vit', UserError, r"scale is 'big'; it must be a number or"),
        (dict(width=-1), 'vit', UserError, r'width is -1'),
        (dict(dropout=1), 'vit', UserError, r'dropout is 1; (allowed|it must be)'),
        (dict(at='attn'), 'resnet', UnknownNameError, r"'attn'.*roles of resnet18"),
        (
            dict(at='backbone'),
            'resnet',
            NoSiteError,
            r"positions of its input, .* \(this gives \(32,\)\), but 'the backbone' \(ResNet",
        ),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='UTuning', **config)).attach(tiny(family))
