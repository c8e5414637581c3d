"""How much of a network a tuner reaches, against counts of the network's own modules."""

import json
import re

import pytest
from torch import nn

from tests.nets import VIT, tiny
from vet.backbones.roles import find_layout
from vet.cli import list as command
from vet.core.backbone import Backbone, Preprocessing
from vet.core.coverage import coverage, percent, report, share_behind_blocks, shortfalls
from vet.errors import UserError
from vet.registry import BACKBONES, TUNERS


def attached(backbone: Backbone, **config: object):
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    return tuner


def share(backbone: Backbone, *ends: str) -> float:
    """Of the numbers in all matrices of the ViT's layers, those in layers whose path ends so."""
    weights = {
        name: module.weight.numel()
        for name, module in backbone.network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return sum(count for name, count in weights.items() if name.endswith(ends)) / sum(weights.values())


@pytest.mark.parametrize(
    'config, attentions, ends, norms',
    [
        (dict(type='LoRA'), 3, ('.qkv',), 0),
        (dict(type='LoRA', at='mlp.fc1'), 0, ('.fc1',), 0),
        (dict(type='LoRA', rank=[0, 0, 4]), 1, ('blocks.2.attn.qkv',), 0),
        (dict(type='IA3'), 3, ('.qkv', '.fc2'), 0),
        (dict(type='SSF'), 3, ('',), 7),
        (dict(type='NormTune'), 0, ('nothing',), 7),
        (dict(type='BitFit'), 3, ('nothing',), 7),
        (dict(type='Adapter'), 0, ('.fc1', '.fc2'), 0),
        (dict(type='AdapterPlus'), 3, ('.qkv', 'attn.proj', '.fc1', '.fc2'), 6),
        (dict(type='Full'), 3, ('',), 7),
        (
            dict(type='Partial'),
            1,
            tuple(f'blocks.2.{p}' for p in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')),
            2,
        ),
    ],
    ids=str,
)
def test_what_a_tuner_reaches_in_a_vit(config, attentions, ends, norms):
    backbone = tiny('vit')
    reached = attached(backbone, **config).coverage()
    assert [len(layers) for layers in reached.attentions] == [attentions, 3 - attentions]
    assert [len(layers) for layers in reached.norms] == [norms, 7 - norms]
    assert reached.weights == pytest.approx(share(backbone, *ends))
    assert str(reached).startswith(
        f'{percent(reached.weights)} of the weights, {attentions} of 3 attention layers, '
    )


def test_packed_projections_count():
    backbone = tiny('torchvision-vit')
    reached = attached(backbone, type='LoRA').coverage()
    packed = sum(
        p.numel() for name, p in backbone.network.named_parameters() if name.endswith('in_proj_weight')
    )
    matrices = sum(
        p.numel()
        for name, p in backbone.network.named_parameters()
        if name.endswith('weight') and p.dim() > 1
    )
    assert reached.weights == pytest.approx(packed / matrices) and len(reached.attentions[0]) == 2
    assert attached(tiny('torchvision-vit'), type='Full').coverage().weights == 1


def test_a_kept_classifier_is_no_part():
    source = dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT)
    without, kept = BACKBONES.build(source), BACKBONES.build(dict(source, classifier=True))
    assert coverage(kept.sites, ['blocks.0']) == coverage(without.sites, ['blocks.0'])


def partly(roles: dict[str, str]) -> Backbone:
    network = tiny('vit').network
    return Backbone(
        network, find_layout(network, roles), Preprocessing(size=(32, 32)), dict(type='test', name='partly')
    )


@pytest.mark.parametrize(
    'roles, config, text',
    [
        (
            {'attn.qkv': r'blocks\.0\.attn\.qkv'},
            dict(type='LoRA'),
            r"'attn\.qkv' reaches 1 of the 3 attention layers of partly .*'blocks\.1\.attn' \(Attention\)",
        ),
        (
            {'norm': r'norm'},
            dict(type='NormTune'),
            r"'norm' reaches 1 of the 7 norms of partly .*'blocks\.0\.norm1' \(LayerNorm\)",
        ),
        (
            {'block': r'blocks\.0'},
            dict(type='LoRA', at='weight'),
            r"'weight' lies within the 1 blocks that were found .* hold 29 % of the weights",
        ),
        (
            {'block': r'blocks\.0'},
            dict(type='Partial'),
            r"'block\[-1:\]' are the last blocks, but 57 % of the weights .* behind the last block",
        ),
    ],
    ids=['attentions', 'norms', 'weights', 'last blocks'],
)
def test_low_coverage_is_told_with_the_reason(roles, config, text):
    tuner = attached(partly(roles), **config)
    lines, shortfalls = report([tuner])
    assert len(lines) == len(shortfalls) == 1 and lines[0].startswith(f'{config["type"]} reaches ')
    assert re.search(text, shortfalls[0])


@pytest.mark.parametrize('family', ['vit', 'swin', 'convnext', 'resnet', 'clip', 'torchvision-vit'])
def test_full_coverage_has_no_shortfall(family):
    for type in ('LoRA', 'SSF', 'NormTune', 'Adapter', 'AdapterPlus', 'Partial', 'LinearProbe', 'Full'):
        backbone = tiny(family)
        try:
            tuner = attached(backbone, type=type)
        except UserError:
            continue
        lines, shortfalls = report([tuner, tuner])
        assert len(lines) == (type != 'LinearProbe') and not shortfalls


def test_weights_behind_the_last_block():
    backbone = partly({'block': r'blocks\.[01]'})
    assert share_behind_blocks(backbone.sites) == pytest.approx(
        share(backbone, *(f'blocks.2.{p}' for p in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')))
    )
    assert share_behind_blocks(tiny('vit').sites) == 0
    assert not list(shortfalls(backbone.sites, 'block[-1:]', thaws=False))


def test_a_tuner_that_is_not_attached_says_so():
    with pytest.raises(UserError, match=r'LoRA is not attached to a backbone'):
        TUNERS.build(dict(type='LoRA')).coverage()


def test_vet_list_roles_prints_it(capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['vet list', 'roles', 'vit_tiny_patch16_224', '--json'])
    command.main()
    rows = json.loads(capsys.readouterr().out)
    assert rows['attn.qkv'].endswith(
        '; 24 % of the weights, 12 of 12 attention layers, 0 of 25 norms, 12 of 12 blocks'
    )
    assert rows['block'].endswith(
        '; 97 % of the weights, 12 of 12 attention layers, 24 of 25 norms, 12 of 12 blocks; '
        '0 % of the weights lie behind the last block'
    )


def test_vet_list_roles_prints_places_that_stand_in(capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['vet list', 'roles', 'resnet18', '--json'])
    command.main()
    rows = json.loads(capsys.readouterr().out)
    assert 'mlp' not in rows and rows['mlp or block'] == (
        "'block', because resnet18 (ResNet) has no 'mlp'; of AdaptFormer, Adapter, Compacter, Convpass, Houlsby, Intermediate"
    )
