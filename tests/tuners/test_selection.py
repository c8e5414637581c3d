"""Which parameters each selection trains, by name."""

import pytest
import torch

from tests.nets import images, tiny
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def trained(family: str, **config: object) -> set[str]:
    backbone = tiny(family)
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    trains = {name for name, p in backbone.network.named_parameters() if p.requires_grad}
    assert trains == {name.removeprefix('thawed.') for name, _ in tuner.trainable()}
    return trains


def names(family: str) -> list[str]:
    return [name for name, _ in tiny(family).network.named_parameters()]


@pytest.mark.parametrize('family', ['vit', 'resnet', 'torchvision-vit'])
def test_full_trains_every_parameter(family):
    assert trained(family, type='Full') == set(names(family))


def test_linear_probe_trains_none():
    assert trained('vit', type='LinearProbe') == set()


@pytest.mark.parametrize('family, extra', [('vit', set()), ('convnext', set()), ('torchvision-vit', {
    f'encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias' for i in range(2)})])
def test_bitfit_trains_the_biases_alone(family, extra):
    biases = trained(family, type='BitFit')
    assert biases == {name for name in names(family) if name.endswith('.bias')} | extra


def test_bitfit_takes_places():
    assert trained('vit', type='BitFit', at='attn.qkv[0]') == {'blocks.0.attn.qkv.bias'}


def test_bitfit_where_there_is_no_bias_is_an_error():
    with pytest.raises(NoSiteError, match=r"BitFit has nothing to train at the 1 sites of 'layer1\.0\.conv1'"):
        trained('resnet', type='BitFit', at='layer1.0.conv1')


@pytest.mark.parametrize('family, config, prefixes', [
    ('vit', dict(), ['blocks.2.']),
    ('vit', dict(blocks=2, norm=True), ['blocks.1.', 'blocks.2.', 'norm.']),
    ('swin', dict(norm=True), ['layers.1.blocks.0.', 'norm.']),
    ('swin', dict(blocks=2, norm=True), ['layers.0.blocks.1.', 'layers.1.downsample.norm.', 'layers.1.blocks.0.', 'norm.']),
    ('convnext', dict(norm=True), ['stages.3.blocks.0.', 'head.norm.']),
    ('resnet', dict(norm=True), ['layer4.0.']),
    ('clip', dict(norm=True), ['blocks.2.', 'norm.']),
])
def test_partial_trains_the_last_blocks_and_the_norms_after_them(family, config, prefixes):
    expected = {name for name in names(family) if name.startswith(tuple(prefixes))}
    assert trained(family, type='Partial', **config) == expected


@pytest.mark.parametrize('blocks, text', [(0, 'at least 1'), (-1, 'at least 1'), (4, r'blocks is 4, but the backbone has 3')])
def test_partial_refuses_blocks_that_do_not_exist(blocks, text):
    with pytest.raises(UserError, match=text):
        trained('vit', type='Partial', blocks=blocks)


def test_optimizer_steps_move_copies_and_never_the_originals():
    backbone = tiny('resnet')
    originals = dict(backbone.network.named_parameters())
    values = {name: p.clone() for name, p in originals.items()}
    tuner = TUNERS.build(dict(type='Full'))
    tuner.attach(backbone)
    optimizer = torch.optim.SGD([p for _, p in tuner.trainable()], lr=0.1)
    backbone.train()(images(4)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(originals[name], values[name]) for name in values)
    assert not any(torch.equal(p, values[name]) for name, p in backbone.network.named_parameters())
