"""Adapters against their equations written out in float64, and against the published counts."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import VIT, images, timm_net, tiny, tuned
from vet.core.backbone import Backbone
from vet.core.coverage import report
from vet.core.deltas import strided
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import BACKBONES, TUNERS


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def relu(x: torch.Tensor) -> torch.Tensor:
    return x * (x > 0)


def u(delta: nn.Module, h: torch.Tensor, act=gelu) -> torch.Tensor:
    """W2 act(W1 h + b1) + b2 for channels last"""
    return act(h @ delta.down.weight.T + delta.down.bias) @ delta.up.weight.T + delta.up.bias


def vit_features(
    backbone: Backbone, attn=lambda i, x, y: y, mlp=lambda i, x, y: y, block=lambda i, x: x
) -> torch.Tensor:
    """The plain ViT written out: what follows each attention, FFN and block is given as functions."""
    net, x = backbone.network, images(2).double()
    x = net.patch_embed(x)
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], 1) + net.pos_embed
    for i, part in enumerate(net.blocks):
        h = part.norm1(x)
        x = x + attn(i, h, type(part.attn).forward(part.attn, h))
        h = part.norm2(x)
        x = block(i, x + mlp(i, h, type(part.mlp).forward(part.mlp, h)))
    return net.norm(x)[:, 0]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-8)


def test_the_written_out_vit_is_the_backbone():
    backbone = tiny('vit').eval().double()
    assert close(backbone(images(2).double()), vit_features(backbone))


def test_houlsby_is_a_residual_bottleneck_behind_attention_and_ffn():
    backbone, tuner = tuned('vit', type='Houlsby', width=3)

    def behind(part):
        return lambda i, x, y: y + u(tuner.deltas[f'blocks/{i}/{part}'], y)

    assert len(tuner.deltas) == 6
    assert close(backbone(images(2).double()), vit_features(backbone, behind('attn'), behind('mlp')))


def test_pfeiffer_reads_the_sum_of_ffn_and_residual():
    backbone, tuner = tuned('vit', type='Pfeiffer', width=3)
    expected = vit_features(backbone, block=lambda i, x: x + u(tuner.deltas[f'blocks/{i}'], x, relu))
    assert close(backbone(images(2).double()), expected)


@pytest.mark.parametrize('name', ['Intermediate', 'Adapter'])
def test_intermediate_and_modelscopes_adapter_stand_behind_the_ffn(name):
    backbone, tuner = tuned('vit', type=name, width=3)
    expected = vit_features(backbone, mlp=lambda i, x, y: y + u(tuner.deltas[f'blocks/{i}/mlp'], y))
    assert close(backbone(images(2).double()), expected)


def adaptformer_features(backbone: Backbone, tuner: nn.Module, kept=None) -> torch.Tensor:
    """The features with a branch that reads the tensor before the norm. kept: (block, image) -> whether
    stochastic depth keeps the attention and the FFN, which it divides by 1/2.
    """
    net, x = backbone.network, images(2).double()
    x = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(x)], 1) + net.pos_embed
    for i, part in enumerate(net.blocks):
        share = 1 if kept is None else 2 * kept[i].view(-1, 1, 1)
        attention, ffn = (type(module).forward for module in (part.attn, part.mlp))
        x = x + share * attention(part.attn, part.norm1(x))
        branch = 0.1 * u(tuner.deltas[f'blocks/{i}/mlp'], x, relu)
        x = (
            x
            + share * ffn(part.mlp, F.layer_norm(x, (32,), part.norm2.weight, part.norm2.bias, 1e-6))
            + branch
        )
    return F.layer_norm(x, (32,), net.norm.weight, net.norm.bias, 1e-6)[:, 0]


def test_adaptformer_runs_beside_the_ffn_on_the_tensor_before_its_norm():
    backbone, tuner = tuned('vit', type='AdaptFormer', width=3)
    assert close(backbone(images(2).double()), adaptformer_features(backbone, tuner))


def test_adaptformers_branch_is_never_dropped_with_the_ffn():
    torch.manual_seed(0)
    backbone = timm_net('vit_tiny_patch16_224', **VIT, drop_path_rate=0.5)
    tuner = TUNERS.build(dict(type='AdaptFormer', width=3))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    for _, parameter in tuner.trainable():
        nn.init.normal_(parameter, std=0.5)
    kept = torch.tensor([[0.5, 0.5], [0, 1], [0, 0]])  # timm's first block has no stochastic depth
    for block, row in list(zip(backbone.network.blocks, kept))[1:]:
        for path in (block.drop_path1, block.drop_path2):
            path.forward = lambda x, row=row: 2 * x * row.view(-1, 1, 1)
    assert close(backbone.train()(images(2).double()), adaptformer_features(backbone, tuner, kept))


def test_normed_adaptformer_runs_beside_the_ffn_on_its_normed_input():
    backbone, tuner = tuned('vit', type='AdaptFormer', width=3, normed=True)
    expected = vit_features(
        backbone, mlp=lambda i, x, y: y + 0.1 * u(tuner.deltas[f'blocks/{i}/mlp'], x, relu)
    )
    assert close(backbone(images(2).double()), expected)


def test_adapter_plus_scales_each_channel_behind_the_block():
    backbone, tuner = tuned('vit', type='AdapterPlus', width=3)

    def behind(i, x):
        delta = tuner.deltas[f'blocks/{i}']
        assert delta.scale.shape == (32,)
        return x + delta.scale * u(delta, x)

    assert close(backbone(images(2).double()), vit_features(backbone, block=behind))


def test_before_edits_the_input():
    backbone, tuner = tuned('vit', type='Adapter', width=3, position='before', scale='learned')

    def changed(i, x, y):
        delta, mlp = tuner.deltas[f'blocks/{i}/mlp'], backbone.network.blocks[i].mlp
        return type(mlp).forward(mlp, x + delta.scale * u(delta, x))

    assert close(backbone(images(2).double()), vit_features(backbone, mlp=changed))


@pytest.mark.parametrize(
    'family, at, last',
    [
        ('resnet', 'layer2.0', False),
        ('swin', 'layers.0.blocks.0', True),
        ('convnext', 'stages.1.blocks.0', False),
        ('vgg', 'features.3', False),
    ],
)
@pytest.mark.parametrize('position', ['after', 'before'])
def test_maps_are_edited_along_their_channels(family, at, last, position):
    backbone, tuner = tuned(family, type='Adapter', width=3, at=at, position=position)
    site, delta = backbone.sites.find(at)[0], tuner.deltas[at.replace('.', '/')]
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    frozen = tiny(family).eval().double().network.get_submodule(at)

    def edited(h):
        return h + (u(delta, h) if last else u(delta, h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    expected = edited(frozen(x)) if position == 'after' else frozen(edited(x))
    assert close(site.module(x), expected)


def test_attention_that_gives_a_tuple_is_edited_too():
    backbone, tuner = tuned('torchvision-vit', type='Houlsby', width=3, at='attn')
    attention = backbone.network.encoder.layers[0].self_attention
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    frozen, _ = type(attention).forward(attention, x, x, x, need_weights=False)
    out, weights = attention(x, x, x, need_weights=False)
    assert weights is None
    assert close(out, frozen + u(tuner.deltas['encoder/layers/encoder_layer_0/self_attention'], frozen))


@pytest.mark.parametrize(
    'init, std', [('houlsby', 0.0088), ('bert', 0.02), ('xavier', (2 / (32 + 200)) ** 0.5)]
)
def test_starts(init, std):
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='Adapter', width=200, init=init))
    tuner.attach(tiny('vit'))
    assert not tuner.identity_at_start
    for delta in tuner.deltas.values():
        for layer in (delta.down, delta.up):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05) and not layer.bias.any()
        assert init != 'houlsby' or delta.up.weight.abs().max() <= 0.02


def test_dropout_acts_in_training_alone():
    backbone, tuner = tuned('vit', type='AdaptFormer', width=3, dropout=0.5, normed=True)
    mlp, x = backbone.network.blocks[0].mlp, torch.randn(2, 5, 32, dtype=torch.float64)
    assert close(mlp(x), mlp(x))
    tuner.train()
    assert not close(mlp(x), mlp(x))


def test_dropout_stands_between_the_activation_and_w2():
    backbone, tuner = tuned('vit', type='Adapter', width=300, dropout=0.25)
    delta, x = tuner.deltas['blocks/0/mlp'].train(), torch.randn(1, 1, 32, dtype=torch.float64)
    torch.manual_seed(3)
    found = delta(x, x)
    torch.manual_seed(3)
    dropped = F.dropout(gelu(x @ delta.down.weight.T + delta.down.bias), 0.25)
    assert close(found, x + dropped @ delta.up.weight.T + delta.up.bias)
    assert 0.15 < (dropped == 0).double().mean() < 0.35


@pytest.mark.parametrize('name', ['AdapterPlus', 'Houlsby', 'Pfeiffer', 'Intermediate', 'Adapter'])
def test_drop_path_drops_the_whole_adapter_of_some_images(name):
    backbone, tuner = tuned('vit', type=name, width=3, drop_path=0.25)
    delta = list(tuner.deltas.values())[-1]
    x = torch.randn(1, 5, 32, dtype=torch.float64).expand(400, -1, -1)
    whole = delta.eval()(x, x)[0] - x[0]
    found = delta.train()(x, x) - x
    is_dropped = (found == 0).flatten(1).all(1)
    assert 0.15 < is_dropped.double().mean() < 0.35
    assert close(found[~is_dropped], (whole / 0.75).expand_as(found[~is_dropped]))


# Networks without an FFN ---------------------------------------------------------------------------------------------


def beside(delta: nn.Module, x: torch.Tensor, stride: int) -> torch.Tensor:
    """The branch as two 1 x 1 convolutions, the first of which strides."""
    h = F.conv2d(x, delta.down.weight[:, :, None, None], delta.down.bias, stride)
    return F.conv2d(relu(h), delta.up.weight[:, :, None, None], delta.up.bias)


def test_adaptformer_without_an_ffn_runs_beside_each_block():
    """A block of stride 2 has a branch of stride 2 (Rebuffi et al. 2018)."""
    backbone, tuner = tuned('resnet', type='AdaptFormer', width=3)
    net, x = tiny('resnet').eval().double().network, images(2).double()
    expected = net.maxpool(net.act1(net.bn1(net.conv1(x))))
    for i in range(1, 5):
        (block,), delta = getattr(net, f'layer{i}'), tuner.deltas[f'layer{i}/0']
        expected = block(expected) + 0.1 * beside(delta, expected, 1 if i == 1 else 2)
    assert close(backbone(x), expected.mean((2, 3)))


@pytest.mark.parametrize('name', ['Adapter', 'Intermediate', 'Houlsby'])
def test_adapters_without_an_ffn_stand_behind_each_block(name):
    backbone, tuner = tuned('resnet', type=name, width=3)
    assert set(tuner.deltas) == {f'layer{i}/0' for i in range(1, 5)}
    delta, site = tuner.deltas['layer2/0'], backbone.sites.find('layer2.0')[0]
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    y = tiny('resnet').eval().double().network.layer2[0](x)
    assert close(site.module(x), y + u(delta, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert report([tuner])[0][0].startswith(
        f"{name} acts at 'block', because resnet18 (ResNet) has no 'mlp', and reaches "
    )


@pytest.mark.parametrize(
    'size, kernel, stride, padding',
    [(8, 3, 2, 1), (7, 3, 2, 1), (35, 3, 2, 0), (9, 3, 1, 0), (8, 1, 2, 0), (6, 3, 1, 1)],
)
def test_the_branch_reads_the_middle_of_what_a_convolution_sees(size, kernel, stride, padding):
    places = torch.arange(float(size))[None, None, :, None].expand(1, 1, size, size)
    middle = torch.zeros(1, 1, kernel, kernel)
    middle[..., kernel // 2, kernel // 2] = 1
    seen = F.conv2d(places, middle, stride=stride, padding=padding)
    assert torch.equal(strided(places.movedim(1, -1), seen.movedim(1, -1).shape).movedim(-1, 1), seen)


def test_few_blocks_with_an_ffn_are_told():
    backbone = timm_net('mobilenetv4_conv_aa_medium', 32)
    tuner = TUNERS.build(dict(type='AdaptFormer', width=1))
    tuner.attach(backbone)
    (line,), (missed,) = report([tuner])
    assert line.startswith('AdaptFormer reaches ') and line.endswith(', 4 of 22 blocks')
    assert re.match(r"'mlp' reaches 4 of the 22 blocks of mobilenetv4.* the first of the others is ", missed)


@torch.no_grad()
def test_an_ffn_that_is_called_behind_three_norms_reads_what_each_gives():
    small = dict(img_size=32, embed_dims=(32,) * 4, serial_depths=(1,) * 4, parallel_depth=1, num_heads=8)
    outputs = []
    for normed in (False, True):
        torch.manual_seed(0)
        backbone = timm_net('coat_tiny', 32, **small).eval()
        at = 'parallel_blocks.0.mlp2'
        tuner = TUNERS.build(dict(type='AdaptFormer', width=2, scale=5.0, normed=normed, at=at))
        frozen = backbone(images(2))
        tuner.attach(backbone)
        for _, parameter in tuner.trainable():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
        outputs.append(backbone(images(2)))
        assert not torch.allclose(outputs[-1], frozen, atol=1e-3)
    assert torch.equal(*outputs)


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, count',
    [
        ('Houlsby', 313_536),
        ('Pfeiffer', 156_768),
        ('Intermediate', 156_768),
        ('AdaptFormer', 156_768),
        ('AdapterPlus', 165_984),
        ('Adapter', 156_768),
    ],
)
def test_published_counts_on_vit_b16(count_on_vit_b16, name, count):
    assert count_on_vit_b16(type=name, width=8) == count


def test_width_is_one_value_a_list_by_depth_or_a_dict_of_patterns():
    def widths(**config):
        tuner = TUNERS.build(dict(type='Adapter', **config))
        tuner.attach(tiny('vit'))
        return {name: delta.down.out_features for name, delta in tuner.deltas.items()}

    assert widths(width=[4, 0, 2]) == {'blocks/0/mlp': 4, 'blocks/2/mlp': 2}
    assert widths(width={'attn': 5, 'mlp': 1}, at=['attn[0]', 'mlp[0]']) == {
        'blocks/0/attn': 5,
        'blocks/0/mlp': 1,
    }


def test_only_modelscopes_adapter_answers_to_adapter_length():
    assert TUNERS.find('Adapter').length_key == ('adapter_length', 'width')
    assert all(
        TUNERS.find(name).length_key is None
        for name in ('Houlsby', 'Pfeiffer', 'Intermediate', 'AdaptFormer', 'AdapterPlus')
    )


def test_a_parallel_branch_needs_channels_on_one_axis():
    """torchvision's Swin turns (B, C, H, W) into (B, H, W, C). With 384 pixels, C = H = W: shapes tell nothing."""
    preprocessing = dict(size=(384, 384))
    backbone = BACKBONES.build(
        dict(type='torchvision', name='swin_t', pretrained=False, preprocessing=preprocessing)
    )
    with pytest.raises(NoSiteError, match=r'features\.0\.1'):
        TUNERS.build(dict(type='Adapter', at='features.0.1', position='parallel')).attach(backbone)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(width=0), 'vit', UserError, r'width is 0; it must be at least 1'),
        (
            dict(position='beside'),
            'vit',
            UnknownNameError,
            r"position of tuner 'Adapter' 'beside'.*after, before, parallel",
        ),
        (
            dict(activation='geluu'),
            'vit',
            UnknownNameError,
            r"activation of tuner 'Adapter' 'geluu'.*Did you mean 'gelu'",
        ),
        (
            dict(init='zeros'),
            'vit',
            UnknownNameError,
            r"init of tuner 'Adapter' 'zeros'.*Did you mean 'zero'",
        ),
        (
            dict(scale='chanel'),
            'vit',
            UserError,
            r"scale is 'chanel'; it must be a number or 'learned' or 'channel'",
        ),
        (dict(dropout=1), 'vit', UserError, r'dropout is 1; (allowed|it must be)'),
        (dict(at='mlp'), 'resnet', UnknownNameError, r"'mlp'.*roles of resnet18.*at='block' works"),
        (
            dict(at='backbone', position='parallel'),
            'resnet',
            NoSiteError,
            r'Adapter needs a module whose output has the positions of its input, or is a smaller map of them '
            r"\(this module gives \(32,\)\), but 'the backbone' \(ResNet",
        ),
        (dict(at='attn.proj'), 'torchvision-vit', NoSiteError, r'out_proj.* is never called'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='Adapter', **config)).attach(tiny(family))
