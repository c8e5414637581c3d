"""Blocks, roles, shapes and channel axes of the real architectures, at full size, on torch's meta device."""

import functools

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from tests.nets import images
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.dry_run import dry_run
from vet.core.site_map import SiteMap
from vet.errors import UserError
from vet.registry import BACKBONES, TUNERS

VIT_ROLES = ('attn', 'attn.qkv', 'attn.proj', 'mlp', 'mlp.fc1', 'mlp.fc2')


@functools.cache
def sites_of(source: str, name: str) -> SiteMap:
    with torch.device('meta'):
        network = timm.create_model(name, num_classes=0) if source == 'timm' else models.get_model(name)
        size = network.pretrained_cfg['input_size'][1:] if source == 'timm' else (224, 224)
        return SiteMap(network, find_layout(network), dry_run(network, torch.zeros(1, 3, *size)), name)


ARCHITECTURES = [
    # source, name, blocks, weights in blocks, norms, whether attention and mlp roles are found, once a block
    ('timm', 'vit_base_patch16_224', 12, 48, 25, VIT_ROLES),
    ('timm', 'deit_tiny_distilled_patch16_224', 12, 48, 25, VIT_ROLES),
    ('timm', 'vit_small_patch14_reg4_dinov2', 12, 48, 25, VIT_ROLES),
    ('timm', 'vit_base_patch16_clip_quickgelu_224', 12, 48, 26, VIT_ROLES),
    ('timm', 'swin_tiny_patch4_window7_224', 12, 48, 29, VIT_ROLES),
    ('timm', 'convnext_tiny', 18, 54, 23, ('mlp', 'mlp.fc1', 'mlp.fc2')),
    ('timm', 'resnet50', 16, 52, 53, ()),
    ('timm', 'mobilenetv2_100', 17, 50, 52, ()),
    ('timm', 'efficientnet_b0', 16, 79, 49, ()),
    ('timm', 'vgg16', 15, 15, 0, ()),
    ('torchvision', 'vit_b_16', 12, 48, 25, VIT_ROLES),
    ('torchvision', 'swin_t', 12, 48, 29, VIT_ROLES),
    ('torchvision', 'swin_v2_t', 12, 72, 29, VIT_ROLES),
    ('torchvision', 'convnext_tiny', 18, 54, 23, ('mlp', 'mlp.fc1', 'mlp.fc2')),
    ('torchvision', 'resnet50', 16, 52, 53, ()),
    ('torchvision', 'mobilenet_v2', 17, 50, 52, ()),
    ('torchvision', 'efficientnet_b0', 16, 79, 49, ()),
    ('torchvision', 'vgg16', 16, 16, 0, ()),  # with its classifier
    ('torchvision', 'alexnet', 8, 8, 0, ()),  # with its classifier
]


@pytest.mark.parametrize(
    'source, name, blocks, weights, norms, inner',
    ARCHITECTURES,
    ids=[f'{source}-{name}' for source, name, *_ in ARCHITECTURES],
)
def test_roles_are_found_once_a_block(source, name, blocks, weights, norms, inner):
    sites = sites_of(source, name)
    counts = {role: len(names) for role, names in sites.roles().items() if role not in ('linear', 'conv')}
    expected = dict.fromkeys(('block', *inner), blocks) | dict(weight=weights, norm=norms, backbone=1, stem=1)
    assert counts == {role: count for role, count in expected.items() if count}
    assert [site.depth for site in sites.find('block')] == list(range(blocks))
    for role in inner:
        assert [site.depth for site in sites.find(role)] == list(range(blocks))


SHAPES = [
    # source, name, place, module path, in, out, channel axis, windows
    ('timm', 'vit_base_patch16_224', 'block[0]', 'blocks.0', (197, 768), (197, 768), -1, 1),
    ('timm', 'vit_base_patch16_224', 'attn.qkv[-1]', 'blocks.11.attn.qkv', (197, 768), (197, 2304), -1, 1),
    ('timm', 'vit_base_patch16_224', 'mlp.fc1[0]', 'blocks.0.mlp.fc1', (197, 768), (197, 3072), -1, 1),
    ('timm', 'vit_base_patch16_224', 'mlp.fc2[0]', 'blocks.0.mlp.fc2', (197, 3072), (197, 768), -1, 1),
    ('timm', 'vit_base_patch16_224', 'stem', 'patch_embed.proj', (3, 224, 224), (768, 14, 14), -3, 1),
    (
        'timm',
        'deit_tiny_distilled_patch16_224',
        'attn.proj[3]',
        'blocks.3.attn.proj',
        (198, 192),
        (198, 192),
        -1,
        1,
    ),
    ('timm', 'vit_small_patch14_reg4_dinov2', 'block[0]', 'blocks.0', (1374, 384), (1374, 384), -1, 1),
    (
        'timm',
        'swin_tiny_patch4_window7_224',
        'block[0]',
        'layers.0.blocks.0',
        (56, 56, 96),
        (56, 56, 96),
        -1,
        1,
    ),
    (
        'timm',
        'swin_tiny_patch4_window7_224',
        'block[-1]',
        'layers.3.blocks.1',
        (7, 7, 768),
        (7, 7, 768),
        -1,
        1,
    ),
    (
        'timm',
        'swin_tiny_patch4_window7_224',
        'attn.qkv[0]',
        'layers.0.blocks.0.attn.qkv',
        (49, 96),
        (49, 288),
        -1,
        64,
    ),
    ('timm', 'convnext_tiny', 'block[0]', 'stages.0.blocks.0', (96, 56, 56), (96, 56, 56), -3, 1),
    ('timm', 'convnext_tiny', 'mlp.fc1[0]', 'stages.0.blocks.0.mlp.fc1', (56, 56, 96), (56, 56, 384), -1, 1),
    (
        'timm',
        'convnext_tiny',
        'stages.1.downsample.0',
        'stages.1.downsample.0',
        (96, 56, 56),
        (96, 56, 56),
        -3,
        1,
    ),
    ('timm', 'resnet50', 'block[0]', 'layer1.0', (64, 56, 56), (256, 56, 56), -3, 1),
    ('timm', 'resnet50', 'block[-1]', 'layer4.2', (2048, 7, 7), (2048, 7, 7), -3, 1),
    ('timm', 'mobilenetv2_100', 'block[1]', 'blocks.1.0', (16, 112, 112), (24, 56, 56), -3, 1),
    ('timm', 'vgg16', 'block[12]', 'features.28', (512, 14, 14), (512, 14, 14), -3, 1),
    ('timm', 'vgg16', 'block[-1]', 'pre_logits.fc2', (4096, 1, 1), (4096, 1, 1), -3, 1),
    ('torchvision', 'vit_b_16', 'block[2]', 'encoder.layers.encoder_layer_2', (197, 768), (197, 768), -1, 1),
    (
        'torchvision',
        'vit_b_16',
        'mlp.fc2[0]',
        'encoder.layers.encoder_layer_0.mlp.3',
        (197, 3072),
        (197, 768),
        -1,
        1,
    ),
    ('torchvision', 'swin_t', 'block[0]', 'features.1.0', (56, 56, 96), (56, 56, 96), -1, 1),
    ('torchvision', 'swin_t', 'mlp.fc1[0]', 'features.1.0.mlp.0', (56, 56, 96), (56, 56, 384), -1, 1),
    ('torchvision', 'swin_t', 'attn[0]', 'features.1.0.attn', (56, 56, 96), (56, 56, 96), -1, 1),
    ('torchvision', 'swin_t', 'attn[-1]', 'features.7.1.attn', (7, 7, 768), (7, 7, 768), -1, 1),
    ('torchvision', 'swin_v2_t', 'attn[3]', 'features.3.1.attn', (28, 28, 192), (28, 28, 192), -1, 1),
    ('torchvision', 'maxvit_t', 'block[0]', 'blocks.0', (64, 112, 112), (64, 56, 56), -3, 1),
    ('torchvision', 'shufflenet_v2_x0_5', 'block[-1]', 'stage4.3', (192, 7, 7), (192, 7, 7), -3, 1),
    ('timm', 'samvit_base_patch16', 'attn[2]', 'blocks.2.attn', (64, 64, 768), (64, 64, 768), -1, 1),
    ('timm', 'davit_tiny', 'block[-1]', 'stages.3.blocks.0.1', (768, 7, 7), (768, 7, 7), -3, 1),
    ('timm', 'mambaout_femto', 'block[-1]', 'stages.3.blocks.2', (7, 7, 288), (7, 7, 288), -1, 1),
    ('timm', 'focalnet_tiny_lrf', 'block[-1]', 'layers.3.blocks.1', (768, 7, 7), (768, 7, 7), -3, 1),
    ('timm', 'caformer_s18', 'mlp[5]', 'stages.1.blocks.2.mlp', (128, 28, 28), (128, 28, 28), -3, 1),
    (
        'timm',
        'efficientvim_m1',
        'stages.2.blocks.1.mixer.out_proj.conv',
        'stages.2.blocks.1.mixer.out_proj.conv',
        (320, 9),
        (320, 9),
        -2,
        1,
    ),
    ('torchvision', 'convnext_tiny', 'block[0]', 'features.1.0', (96, 56, 56), (96, 56, 56), -3, 1),
    (
        'torchvision',
        'convnext_tiny',
        'mlp.fc2[0]',
        'features.1.0.block.5',
        (56, 56, 384),
        (56, 56, 96),
        -1,
        1,
    ),
    ('torchvision', 'alexnet', 'block[0]', 'features.0', (3, 224, 224), (64, 55, 55), -3, 1),
    ('torchvision', 'mobilenet_v2', 'block[0]', 'features.1', (32, 112, 112), (16, 112, 112), -3, 1),
]


@pytest.mark.parametrize(
    'source, name, at, path, in_shape, out_shape, axis, windows',
    SHAPES,
    ids=[f'{source}-{name}-{at}' for source, name, at, *_ in SHAPES],
)
def test_sites_have_their_shapes_and_channel_axis(source, name, at, path, in_shape, out_shape, axis, windows):
    site = sites_of(source, name).find(at)[0]
    assert (site.name, tuple(site.in_shape), tuple(site.out_shape), site.axis, site.windows_per_image) == (
        path,
        in_shape,
        out_shape,
        axis,
        windows,
    )


class Odd(nn.Module):
    """A network of a family nobody knows: no class or path that says what is what. Its values come
    first, then keys, queries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 8, 8, 8)
        self.rungs = nn.ModuleList(
            nn.ModuleDict(dict(mix=nn.Linear(8, 24), out=nn.Linear(8, 8))) for _ in range(3)
        )

    def forward(self, x):
        x = self.into(x).flatten(2).mT
        for rung in self.rungs:
            v, k, q = rung['mix'](x).chunk(3, -1)
            x = x + rung['out']((k @ q.mT).softmax(-2).mT @ v)
        return x.mean(1)


@pytest.fixture
def odd_backbone():
    def odd(roles: dict | None = None) -> Backbone:
        torch.manual_seed(0)
        network = Odd()
        return Backbone(
            network, find_layout(network, roles), Preprocessing(size=(32, 32)), dict(type='Odd', name='odd')
        )

    BACKBONES.register_module(name='Odd', module=odd)
    yield lambda **config: BACKBONES.build(dict(type='Odd', **config))
    BACKBONES.module_dict.pop('Odd')


def test_roles_of_an_unknown_family_are_given_in_the_config(odd_backbone):
    backbone = odd_backbone(roles={'attn.qkv': r'rungs\.\d\.mix', 'exit': r'rungs\.2\.out'})
    lora = TUNERS.build(dict(type='LoRA', rank=2, parts='qv'))
    lora.attach(backbone)
    assert set(lora.deltas) == {f'rungs/{i}/mix' for i in range(3)}
    assert backbone.sites.find('exit')[0].module is backbone.network.rungs[2]['out']
    with torch.no_grad():
        for delta in lora.deltas.values():
            delta.B.fill_(0.1)
    assert not torch.allclose(backbone(images(2)), odd_backbone()(images(2)), atol=1e-3)


def test_unknown_family_without_roles_still_has_paths_weights_and_what_a_forward_shows(odd_backbone):
    sites = odd_backbone().sites
    assert set(sites.roles()) == {'backbone', 'attn.qkv', 'attn.proj', 'weight', 'stem', 'linear', 'conv'}
    assert sites.roles()['attn.qkv'] == [f'rungs.{i}.mix' for i in range(3)]
    assert sites.roles()['attn.proj'] == [f'rungs.{i}.out' for i in range(3)]
    assert len(sites.find('linear')) == 6 and [site.name for site in sites.find('conv')] == ['into']
    assert len(sites.find('rungs.*.mix')) == 3 and len(sites.find('weight')) == 7
    with pytest.raises(UserError, match=r"'block'.*roles of odd \(Odd\).*model\.backbone\.roles"):
        sites.find('block')


@pytest.mark.parametrize('pattern', ['rungs.[', 3])
def test_role_that_is_no_regular_expression_is_refused(odd_backbone, pattern):
    with pytest.raises(UserError, match=r"model\.backbone\.roles\['block'\] is .*, not a regular expression"):
        odd_backbone(roles={'block': pattern})


def test_given_roles_overrule_found_ones():
    with torch.device('meta'):
        network = timm.create_model('resnet18', num_classes=0)
        layout = find_layout(network, {'block': r'layer\d'})
        sites = SiteMap(network, layout, dry_run(network, torch.zeros(1, 3, 64, 64)), 'resnet18')
    assert sites.blocks == ['layer1', 'layer2', 'layer3', 'layer4']
