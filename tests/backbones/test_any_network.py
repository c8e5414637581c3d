"""Roles in networks that no plugin builds: those of transformers, and torchvision's segmentation and
detection.
"""

import re

import pytest
import torch

from tests.own_nets import TORCHVISION, TRANSFORMERS
from vet.backbones.roles import find_layout
from vet.core.coverage import coverage
from vet.core.dry_run import dry_run
from vet.core.site_map import SiteMap


def sites_of(network, example):
    return SiteMap(network, find_layout(network), dry_run(network, example), type(network).__name__)


def in_short(names):
    """The paths with N for each number."""
    return {re.sub(r'\d+', 'N', name) for name in names}


ATTENTION = {
    # name: the attention, its queries, its last layer, the number of attentions in blocks
    'vit': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'deit': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'dinov2': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'dinov3': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'clip': ('self_attn', 'self_attn.q_proj', 'self_attn.out_proj', 2),
    'siglip': ('self_attn', 'self_attn.q_proj', 'self_attn.out_proj', 2),
    'swin': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'swinv2': ('attention', 'attention.self.query', 'attention.output.dense', 2),
    'beit': ('attention', 'attention.q_proj', 'attention.o_proj', 2),
    'data2vec': ('attention', 'attention.attention.query', 'attention.output.dense', 2),
    'vitmae': ('attention', 'attention.q_proj', 'attention.o_proj', 3),
    'yolos': ('attention', 'attention.attention.query', 'attention.output.dense', 2),
    'segformer': ('attention', 'attention.q_proj', 'attention.o_proj', 4),
    'pvt': ('attention', 'attention.self.query', 'attention.output.dense', 4),
    'hiera': ('attn', 'attn.qkv', 'attn.proj', 5),
    'mobilevitv2': ('attention', 'attention.qkv_proj.convolution', 'attention.out_proj.convolution', 9),
    'swiftformer': ('attn', 'attn.to_query', 'attn.final', 4),
}


@pytest.mark.parametrize('name', ATTENTION)
def test_every_attention_of_transformers_has_its_projections_and_its_last_layer(name):
    torch.manual_seed(0)
    network = TRANSFORMERS[name]()
    size = network.config.image_size if hasattr(network.config, 'image_size') else 64
    sites = sites_of(network, torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size)))
    roles = sites.roles()
    whole, query, last, count = ATTENTION[name]
    for role, leaf in (('attn', whole), ('attn.qkv', query), ('attn.proj', last)):
        found = [path for path in roles[role] if path.endswith(f'.{leaf}')]
        assert len(found) == count, role
    reached, missed = coverage(sites, roles['attn.qkv']).attentions
    assert len(reached) == count and missed == roles.get('pool', [])
    assert roles['mlp.fc1'] and len(roles['mlp.fc1']) == len(roles['mlp.fc2'])


def test_the_attention_of_levit_is_found_by_its_products():
    roles = sites_of(TRANSFORMERS['levit'](), torch.zeros(1, 3, 64, 64)).roles()
    assert {path.rpartition('.module.')[2] for path in in_short(roles['attn.qkv'])} >= {
        'queries_keys_values.linear'
    }
    assert len(roles['attn.proj']) == 5


def test_an_ffn_without_a_module_has_its_layers():
    swin = sites_of(TRANSFORMERS['swinv2'](), torch.zeros(1, 3, 32, 32)).roles()
    assert 'mlp' not in swin
    assert in_short(swin['mlp.fc1']) == {'swinvN.encoder.layers.N.blocks.N.intermediate.dense'}
    assert in_short(swin['mlp.fc2']) == {'swinvN.encoder.layers.N.blocks.N.output.dense'}
    convnext = sites_of(TRANSFORMERS['convnext'](), torch.zeros(1, 3, 32, 32)).roles()
    assert in_short(convnext['mlp.fc1']) == {'convnext.encoder.stages.N.layers.N.pwconvN'}
    assert len(convnext['mlp.fc1']) == len(convnext['mlp.fc2']) == len(convnext['block']) == 4


def test_a_residual_network_of_transformers_has_blocks_and_no_ffn():
    roles = sites_of(TRANSFORMERS['resnet'](), torch.zeros(1, 3, 32, 32)).roles()
    assert len(roles['block']) == 4 and not {'attn', 'mlp.fc1'} & set(roles)


@pytest.mark.parametrize(
    'name, blocks, path',
    [
        ('lraspp', 15, r'backbone\.\d+'),
        ('deeplabv3', 15, r'backbone\.\d+'),
        pytest.param('fcn', 16, r'backbone\.layer\d\.\d', marks=pytest.mark.slow),
    ],
)
def test_blocks_of_segmentation_networks_lie_in_their_backbone(name, blocks, path):
    sites = sites_of(TORCHVISION[name](), torch.zeros(1, 3, 64, 64))
    assert len(sites.blocks) == blocks and all(re.fullmatch(path, block) for block in sites.blocks)


@pytest.mark.parametrize('name, blocks', [('fasterrcnn', 15), ('retinanet', 16)])
@pytest.mark.slow
def test_blocks_of_detection_networks_lie_in_their_backbone(name, blocks):
    sites = sites_of(TORCHVISION[name](), [torch.zeros(3, 64, 64)])
    assert len(sites.blocks) == blocks
    assert all(block.startswith('backbone.body.') for block in sites.blocks)
