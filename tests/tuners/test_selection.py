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


@pytest.mark.parametrize(
    'family, extra',
    [
        ('vit', set()),
        ('convnext', set()),
        (
            'torchvision-vit',
            {f'encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias' for i in range(2)},
        ),
    ],
)
def test_bitfit_trains_the_biases_alone(family, extra):
    biases = trained(family, type='BitFit')
    assert biases == {name for name in names(family) if name.endswith('.bias')} | extra


def test_bitfit_takes_places():
    assert trained('vit', type='BitFit', at='attn.qkv[0]') == {'blocks.0.attn.qkv.bias'}


def test_bitfit_where_there_is_no_bias_is_an_error():
    with pytest.raises(
        NoSiteError, match=r"BitFit has nothing to train at the 1 sites of 'layer1\.0\.conv1'"
    ):
        trained('resnet', type='BitFit', at='layer1.0.conv1')


@pytest.mark.parametrize(
    'family, config, prefixes',
    [
        ('vit', dict(), ['blocks.2.']),
        ('vit', dict(blocks=2, norm=True), ['blocks.1.', 'blocks.2.', 'norm.']),
        ('swin', dict(norm=True), ['layers.1.blocks.0.', 'norm.']),
        (
            'swin',
            dict(blocks=2, norm=True),
            ['layers.0.blocks.1.', 'layers.1.downsample.norm.', 'layers.1.blocks.0.', 'norm.'],
        ),
        ('convnext', dict(norm=True), ['stages.3.blocks.0.', 'head.norm.']),
        ('resnet', dict(norm=True), ['layer4.0.']),
        ('clip', dict(norm=True), ['blocks.2.', 'norm.']),
    ],
)
def test_partial_trains_the_last_blocks_and_the_norms_after_them(family, config, prefixes):
    expected = {name for name in names(family) if name.startswith(tuple(prefixes))}
    assert trained(family, type='Partial', **config) == expected


@pytest.mark.parametrize(
    'blocks, text', [(0, 'at least 1'), (-1, 'at least 1'), (4, r'blocks is 4, but the backbone has 3')]
)
def test_partial_refuses_blocks_that_do_not_exist(blocks, text):
    with pytest.raises(UserError, match=text):
        trained('vit', type='Partial', blocks=blocks)


@pytest.mark.parametrize(
    'family, given, expected',
    [
        ('vit', 'blocks.2', lambda all: {n for n in all if n.startswith('blocks.2.')}),
        (
            'vit',
            ['norm.', r'blocks\.\d\.attn\..*bias'],
            lambda all: {n for n in all if n.startswith('norm.') or 'attn' in n and 'bias' in n},
        ),
        ('resnet', 'layer4', lambda all: {n for n in all if n.startswith('layer4')}),
        ('vit', 'cls_token', lambda all: {'cls_token'}),
    ],
)
def test_partial_trains_the_named_parameters(family, given, expected):
    assert trained(family, type='Partial', names=given) == expected(names(family))


@pytest.mark.parametrize('indices', [(-3, None), (0, 2), (None, None), [5, 9]])
def test_partial_trains_a_range_of_the_parameters_in_their_order(indices):
    assert trained('resnet', type='Partial', indices=indices) == set(names('resnet')[slice(*indices)])


@pytest.mark.parametrize(
    'config, text',
    [
        (dict(names='blok'), r"unknown path or pattern of parameters in names 'blok'"),
        (
            dict(names='*bias'),
            r"which is no path of a parameter or of a module, is '\*bias', not a regular expression",
        ),
        (dict(names='norm', indices=(0, 1)), r'give one of them'),
        (dict(indices=(1, 2, 3)), r'indices is \(1, 2, 3\); it must be a list of 2 values'),
        (dict(indices=(900, None)), r'indices is \(900, None\), but the backbone has \d+ parameters'),
    ],
)
def test_partial_refuses_what_chooses_nothing(config, text):
    with pytest.raises(UserError, match=text):
        trained('vit', type='Partial', **config)


def test_norm_tune_trains_the_norms_and_keeps_their_statistics_with_them():
    assert trained('vit', type='NormTune') == {name for name in names('vit') if 'norm' in name}
    backbone = tiny('resnet')
    tuner = TUNERS.build(dict(type='NormTune', at='layer4.0.bn1'))
    tuner.attach(backbone)
    assert set(tuner.state()) == {
        f'thawed.layer4.0.bn1.{leaf}'
        for leaf in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    }


def test_diff_fit_is_a_scaled_attention_and_mlp_beside_biases_and_norms():
    torch.manual_seed(0)
    backbone = tiny('vit')
    tuner = TUNERS.build(dict(type='DiffFit'))
    tuner.attach(backbone)
    assert {name for name, _ in tuner.trainable() if name.startswith('thawed.')} == {
        f'thawed.{name}' for name in names('vit') if 'bias' in name or 'norm' in name
    }
    backbone.double().eval(), tuner.double()
    for delta in tuner.deltas.values():
        torch.nn.init.normal_(delta.gamma)
    block, x = backbone.network.blocks[1], torch.randn(2, 17, 32, dtype=torch.float64)
    gamma1, gamma2 = (tuner.deltas[f'blocks/1/{part}'].gamma for part in ('attn/proj', 'mlp/fc2'))
    y = block(x)
    plain = tiny('vit').double().eval().network.blocks[1]
    middle = x + gamma1 * plain.attn(plain.norm1(x))
    assert torch.allclose(y, middle + gamma2 * plain.mlp(plain.norm2(middle)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'config, number', [(dict(type='NormTune'), 38_400), (dict(type='DiffFit'), 140_544)], ids=str
)
def test_published_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


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
