"""Attention, FFNs, norms and blocks of families that name them in their own way, on torch's meta device."""

import re

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0
from torch import nn

from tests.backbones.test_roles import sites_of
from tests.nets import images, randomised, timm_net
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.dry_run import dry_run
from vet.core.norms import is_norm
from vet.core.site_map import SiteMap
from vet.errors import UnknownNameError
from vet.registry import TUNERS


def in_short(names: list[str]) -> set[str]:
    """The paths with N for each number."""
    return {re.sub(r'\d+', 'N', name) for name in names}


ATTENTION = [
    # source, name, projections of queries, keys and values, their number
    (
        'timm',
        'test_maxvit',
        {'stages.N.blocks.N.attn_block.attn.qkv', 'stages.N.blocks.N.attn_grid.attn.qkv'},
        8,
    ),
    ('torchvision', 'maxvit_t', {'blocks.N.layers.N.layers.window_attention.attn_layer.N.to_qkv'}, 22),
    ('timm', 'coatnet_pico_rw_224', {'stages.N.blocks.N.attn.qkv'}, 7),
    ('timm', 'mobilevit_xxs', {'stages.N.N.transformer.N.attn.qkv'}, 9),
    ('timm', 'mobilevitv2_050', {'stages.N.N.transformer.N.attn.qkv_proj'}, 9),
    ('timm', 'levit_128s', {'stages.N.blocks.N.attn.qkv.linear', 'kv.linear', 'q.ln.linear'}, 13),
    ('timm', 'fastvit_sa12', {'stages.N.blocks.N.token_mixer.qkv'}, 2),
    ('timm', 'caformer_s18', {'stages.N.blocks.N.token_mixer.qkv'}, 12),
    ('timm', 'efficientformer_l1', {'stages.N.blocks.N.token_mixer.qkv'}, 1),
    ('timm', 'efficientformerv2_s0', {'token_mixer.q.conv', 'token_mixer.k.conv', 'token_mixer.v.conv'}, 15),
    ('timm', 'efficientvit_b0', {'stages.N.blocks.N.context_module.main.qkv.conv'}, 4),
    ('timm', 'efficientvit_m0', {'stages.N.blocks.N.mixer.m.attn.qkvs.N.conv'}, 24),
    ('timm', 'mobilenetv4_hybrid_medium_075', {'attn.query.proj', 'attn.key.proj', 'attn.value.proj'}, 24),
    ('timm', 'mobilenetv5_base', {'attn.query.proj', 'attn.key.proj', 'attn.value.proj'}, 39),
    ('timm', 'nest_tiny_jx', {'levels.N.transformer_encoder.N.attn.qkv'}, 12),
    ('torchvision', 'swin_v2_t', {'features.N.N.attn.qkv'}, 12),
    ('timm', 'vit_base_patch16_xp_224', {'blocks.N.in_proj'}, 12),
    ('timm', 'tnt_s_legacy_patch16_224', {'attn_in.qk', 'attn_in.v', 'attn_out.qk', 'attn_out.v'}, 48),
    ('timm', 'botnet26t_256', {'stages.N.N.self_attn.qkv'}, 3),
    ('timm', 'halonet26t', {'stages.N.N.self_attn.q', 'stages.N.N.self_attn.kv'}, 6),
    ('timm', 'lambda_resnet26t', {'stages.N.N.self_attn.qkv'}, 3),
    ('timm', 'shvit_s1', {'stages.N.blocks.N.mixer.m.qkv.c'}, 9),
    (
        'timm',
        'crossvit_9_240',
        {'blocks.N.blocks.N.N.attn.qkv', 'fusion.N.attn.wq', 'fusion.N.attn.wk', 'wv'},
        30,
    ),
    (
        'timm',
        'volo_d1_224',
        {'network.N.N.attn.qkv', 'network.N.N.attn.v', 'post_network.N.attn.kv', 'attn'},
        26,
    ),
    ('timm', 'swiftformer_xs', {'attn.to_query', 'attn.to_key'}, 8),
    ('timm', 'vit_base_patch16_siglip_224', {'blocks.N.attn.qkv'}, 12),
]


def slowly(rows: list[tuple], fast: int, of: int = 0) -> list:
    """The rows as cases named by their entry `of`: the first ones are fast."""
    return [
        pytest.param(*row, id=row[of], marks=[] if i < fast else pytest.mark.slow)
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize('source, name, projections, number', slowly(ATTENTION, 8, 1))
def test_queries_keys_and_values_are_found_whatever_they_are_called(source, name, projections, number):
    found = sites_of(source, name).roles()['attn.qkv']
    kinds = in_short(found)
    assert len(found) == number
    for ending in projections:
        assert any(kind.endswith(ending) for kind in kinds), (ending, kinds)


@pytest.mark.parametrize(
    'name, pool', [('resnet50_clip', 'head'), ('vit_base_patch16_siglip_224', 'attn_pool')]
)
def test_attention_that_pools_is_a_choice(name, pool):
    sites = sites_of('timm', name)
    assert sites.roles()['pool'] == [pool]
    assert {site.host_name.partition('.')[0] for site in sites.find('pool.qkv')} == {pool}


def test_a_network_whose_only_attention_pools_says_so():
    with pytest.raises(UnknownNameError, match=r"'attn\.qkv'.*at='pool\.qkv' works"):
        sites_of('timm', 'resnet50_clip').find('attn.qkv')


BLOCKS = [
    # source, name, blocks, least share of the weights in them, least share in the last one
    ('timm', 'volo_d1_224', 20, 0.9, 0.02),
    ('timm', 'coatnet_0_rw_224', 14, 0.9, 0.02),
    ('timm', 'hgnetv2_b0', 5, 0.4, 0.1),
    ('timm', 'crossvit_9_240', 3, 0.9, 0.2),
    ('timm', 'nest_tiny_jx', 12, 0.9, 0.02),
    ('timm', 'rdnet_tiny', 21, 0.85, 0.01),
    ('timm', 'res2net50_14w_8s', 16, 0.9, 0.05),
    ('timm', 'xception41', 13, 0.7, 0.1),
    ('timm', 'ghostnetv3_050', 16, 0.4, 0.01),
    ('timm', 'inception_v4', 17, 0.9, 0.02),
    ('timm', 'shvit_s1', 11, 0.6, 0.02),
    ('timm', 'mobilenetv4_hybrid_medium_075', 31, 0.7, 0.005),
    ('timm', 'convmixer_768_32', 32, 0.9, 0.02),
]


@pytest.mark.parametrize('source, name, blocks, least, last', slowly(BLOCKS, 4, 1))
def test_blocks_hold_the_network(source, name, blocks, least, last):
    sites = sites_of(source, name)

    def share(paths):
        modules = [sites.network.get_submodule(path) for path in paths]
        numbers = sum(p.numel() for module in modules for p in module.parameters())
        return numbers / sum(p.numel() for p in sites.network.parameters())

    assert len(sites.blocks) == blocks
    assert share(sites.blocks) >= least and share(sites.blocks[-1:]) >= last


MLPS = [
    # name, FFNs, first and last layers of the first of them
    ('eva02_tiny_patch14_224', 12, ['fc1'], ['fc2']),  # one layer makes the gate and the gated
    ('vit_small_plus_patch16_dinov3', 12, ['fc1_g', 'fc1_x'], ['fc2']),
    ('aimv2_large_patch14_224', 24, ['fc1_g', 'fc1_x'], ['fc2']),
    ('vitamin_small_224', 14, ['w0', 'w1'], ['w2']),
    ('pvt_v2_b0', 8, ['fc1'], ['fc2']),
    ('cpubone_nano', 3, ['1'], ['3']),  # has no name for its FFN
    ('levit_128s', 11, ['ln1.linear'], ['ln2.linear']),
    ('mixer_s32_224', 8, ['fc1'], ['fc2']),
]


@pytest.mark.parametrize('name, number, first, last', slowly(MLPS, 2))
def test_gated_ffns_and_ffns_of_other_names_are_found(name, number, first, last):
    roles = sites_of('timm', name).roles()
    assert len(roles['mlp']) == number
    start = roles['mlp'][0] + '.'
    below = {
        role: [path.removeprefix(start) for path in roles[role] if path.startswith(start)] for role in roles
    }
    assert (below['mlp.fc1'], below['mlp.fc2']) == (first, last)


NORMS = [
    ('aimv2_large_patch14_224', 50),
    ('resnetv2_50d_evos', 51),
    ('resnetv2_50d_frn', 51),
    ('resmlp_12_224', 25),
    ('convnextv2_atto', 29),
    ('vit_tiny_patch16_224', 25),
]


@pytest.mark.parametrize('name, number', slowly(NORMS, 2))
def test_every_norm_plays_the_role(name, number):
    sites = sites_of('timm', name)
    assert len(sites.roles()['norm']) == number
    assert all(is_norm(site.module) for site in sites.find('norm'))


class Plain(nn.Module):
    """Its attribute `norm` is no norm, and it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.conv(x).mean((2, 3)))


def test_a_missing_role_is_no_module_path_of_its_name():
    network = Plain()
    backbone = Backbone(
        network, find_layout(network), Preprocessing(size=(8, 8)), dict(type='test', name='plain')
    )
    with pytest.raises(UnknownNameError, match=r"'norm'.*at='weight' works"):
        TUNERS.build(dict(type='NormTune')).attach(backbone)
    ssf = TUNERS.build(dict(type='SSF'))
    ssf.attach(backbone)
    assert set(ssf.deltas) == {'conv', 'norm'}  # the stem and the weights


def test_roles_below_given_blocks_are_found_anew():
    with torch.device('meta'):
        network = timm.create_model('volo_d1_224', num_classes=0)
        layout = find_layout(network, {'block': r'network\.0\.\d'})
        sites = SiteMap(network, layout, dry_run(network, torch.zeros(1, 3, 224, 224)), 'volo')
    assert len(sites.blocks) == 4
    assert in_short(sites.roles()['attn.qkv']) == {'network.N.N.attn.v', 'network.N.N.attn.attn'}
    assert in_short(sites.roles()['mlp']) == {'network.N.N.mlp'} and len(sites.roles()['mlp']) == 4


def test_a_refusal_names_places_that_work():
    with pytest.raises(UnknownNameError, match=r"'mlp'.*Of this network, at='block' works"):
        sites_of('timm', 'resnet18').find('mlp')


def test_frozen_statistics_of_norms_of_timm_stay():
    backbone = timm_net('resnetv2_50d_evos', 64, norm_layer=EvoNorm2dB0, layers=(1, 1, 1, 1))
    before = {name: value.clone() for name, value in backbone.network.named_buffers()}
    assert any(name.endswith('running_var') for name in before)
    backbone.train()(images(4, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.named_buffers())


def test_parts_of_a_packed_projection_beside_an_ffn():
    """ViT-22B's block computes q, k, v and the first layer of its FFN by one weight."""
    backbone = randomised(
        timm_net('vit_base_patch16_xp_224', 32, img_size=32, embed_dim=32, depth=1, num_heads=2)
    )
    lora = TUNERS.build(dict(type='LoRA', rank=2, parts='v'))
    lora.attach(backbone)
    (delta,) = lora.deltas.values()
    rows = backbone.sites.parts['blocks.0.in_proj']
    assert [rows[part].stop - rows[part].start for part in 'qkv'] == [32, 32, 32] and delta.B.shape == (32, 2)


def test_ia3_scales_keys_and_values_whatever_their_layer_is_called():
    backbone = randomised(timm_net('levit_128s', 64, img_size=64))
    tuner = TUNERS.build(dict(type='IA3', at='attn.qkv'))
    tuner.attach(backbone)
    assert in_short([name.replace('/', '.') for name in tuner.deltas]) == {
        'stages.N.blocks.N.attn.qkv.linear',
        'stages.N.downsample.attn_downsample.kv.linear',
    }
    for name, delta in tuner.deltas.items():
        rows = backbone.sites.parts[name.replace('/', '.')]
        numbers = torch.arange(len(backbone.network.get_submodule(name.replace('/', '.')).weight))
        assert delta.rows.tolist() == torch.cat([numbers[rows[part]] for part in 'kv']).tolist()


def test_prompts_flow_beside_the_tokens_of_a_block_that_is_one_attention():
    """ViT-22B's block has no module for its attention."""
    backbone = randomised(
        timm_net('vit_base_patch16_xp_224', 32, img_size=32, embed_dim=32, depth=2, num_heads=2)
    )
    frozen = backbone.eval()(images(1))
    vpt = TUNERS.build(dict(type='VPT', length=3))
    vpt.attach(backbone)
    assert len(vpt.deltas) == 4 and sum(p.numel() for _, p in vpt.trainable()) == 2 * 3 * 32
    assert not torch.allclose(backbone(images(1)), frozen, atol=1e-4)
