"""Convpass against patches gathered one by one in float64, and against the published count."""

import copy

import pytest
import torch

from tests.nets import VIT, images, timm_net, tiny, tuned
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


def act(h: torch.Tensor) -> torch.Tensor:
    return h / (1 + torch.exp(-1.702 * h))


def bypass(delta, x_BHWC: torch.Tensor) -> torch.Tensor:
    """W2 act(sum over the 3 x 3 neighbours of K_ij act(W1 x)): zeros outside of the map."""
    B, H, W, _ = x_BHWC.shape
    h = act(x_BHWC @ delta.down.weight.T + delta.down.bias)
    out = delta.conv.bias.expand(B, H, W, -1).clone()
    for i in range(H):
        for j in range(W):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < H and 0 <= j + dj < W:
                        out[:, i, j] += h[:, i + di, j + dj] @ delta.conv.weight[:, :, di + 1, dj + 1].T
    return act(out) @ delta.up.weight.T + delta.up.bias


@pytest.mark.parametrize('family, prefix', [('vit', 1), ('deit-distilled', 2)])
@pytest.mark.parametrize('part', ['attn', 'mlp'])
def test_patches_are_a_map_and_each_class_token_a_map_of_one(family, prefix, part):
    backbone, tuner = tuned(family, type='Convpass', width=3, scale=0.7)
    module, delta = getattr(backbone.network.blocks[1], part), tuner.deltas[f'blocks/1/{part}']
    x = torch.randn(2, prefix + 16, 32, dtype=torch.float64)
    tokens = [bypass(delta, x[:, None, i : i + 1]).flatten(1, 2) for i in range(prefix)]
    tokens.append(bypass(delta, x[:, prefix:].reshape(2, 4, 4, 32)).reshape(2, 16, 32))
    expected = type(module).forward(module, x) + 0.7 * torch.cat(tokens, 1)
    assert torch.allclose(module(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'family, at, last',
    [
        ('convnext', 'stages.0.blocks.0', False),
        ('mobilenet', 'blocks.1.1', False),
        ('swin', 'layers.0.blocks.0', True),
    ],
)
def test_maps_of_both_channel_orders(family, at, last):
    backbone, tuner = tuned(family, type='Convpass', width=3, at=at)
    site, delta = backbone.sites.find(at)[0], tuner.deltas[at.replace('.', '/')]
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    frozen = tiny(family).eval().double().network.get_submodule(at)
    beside = bypass(delta, x) if last else bypass(delta, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(site.module(x), frozen(x) + beside, rtol=0, atol=1e-8)


def test_a_bypass_beside_a_block_strides_as_the_block_does():
    backbone, tuner = tuned('resnet', type='Convpass', width=3, scale=0.7)
    site, delta = backbone.sites.find('layer2.0')[0], tuner.deltas['layer2/0']
    assert len(tuner.deltas) == 4
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    beside = bypass(delta, x[:, :, ::2, ::2].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = tiny('resnet').eval().double().network.layer2[0](x) + 0.7 * beside
    assert torch.allclose(site.module(x), expected, rtol=0, atol=1e-8)


def test_added_prompts_pass_through():
    backbone, tuner = tuned('vit', type='Convpass', width=3)
    mlp, x = backbone.network.blocks[0].mlp, torch.randn(2, 17 + 4, 32, dtype=torch.float64)
    assert torch.equal(mlp(x)[:, 17:], type(mlp).forward(mlp, x)[:, 17:])
    assert torch.allclose(mlp(x)[:, :17], mlp(x[:, :17]), atol=1e-12)


def test_start():
    tuner = TUNERS.build(dict(type='Convpass', width=3))
    tuner.attach(tiny('vit'))
    for delta in tuner.deltas.values():
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(delta.conv(x), x) and not delta.up.weight.any()
    tuner = TUNERS.build(dict(type='Convpass', width=3, xavier_conv=True))
    tuner.attach(tiny('vit'))
    assert all((delta.conv.weight != 0).all() for delta in tuner.deltas.values())


def test_dropout_acts_in_training_alone():
    backbone, tuner = tuned('vit', type='Convpass', width=3)
    assert torch.equal(backbone(images(2).double()), backbone(images(2).double()))
    tuner.train()
    assert not torch.equal(backbone(images(2).double()), backbone(images(2).double()))


def test_the_bypass_is_dropped_on_its_own():
    """With stochastic depth in the backbone, the attention is dropped, and the bypass stays."""
    torch.manual_seed(0)
    backbone = timm_net('vit_tiny_patch16_224', **VIT, drop_path_rate=0.5)
    plain = copy.deepcopy(backbone).double().eval().network.blocks[1]
    block = backbone.network.blocks[1]
    tuner = TUNERS.build(dict(type='Convpass', width=3, dropout=0.0, drop_path=0.25, at='attn'))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    delta = tuner.deltas['blocks/1/attn']
    for parameter in delta.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 17, 32, dtype=torch.float64).expand(300, -1, -1)
    h = plain.norm1(x)
    beside = delta.bypass(h[:1, 1:].unflatten(1, (4, 4)))
    beside = torch.cat([delta.bypass(h[:1, :1, None])[:, 0], beside.flatten(1, 2)], 1)[0]
    block.drop_path1.forward = lambda y: 0 * y  # drops the attention of all images
    tuner.train()
    found = block.drop_path1(block.attn(block.norm1(x)))
    is_dropped = (found == 0).flatten(1).all(1)
    assert 0.15 < is_dropped.double().mean() < 0.35
    assert torch.allclose(found[~is_dropped], (beside / 0.75).expand(sum(~is_dropped), -1, -1), atol=1e-8)


def test_the_bypass_has_the_rate_of_the_backbone_at_its_place():
    backbone = timm_net('vit_tiny_patch16_224', **VIT, drop_path_rate=0.5)
    rates = {}
    for given in (None, 0.1):
        tuner = TUNERS.build(dict(type='Convpass', width=3, drop_path=given))
        tuner.attach(backbone)
        rates[given] = [tuner.deltas[f'blocks/{i}/mlp'].drop_path.p for i in range(3)]
        tuner.detach()
    assert rates == {None: [0.0, 0.25, 0.5], 0.1: [0.1, 0.1, 0.1]}  # timm's rates rise with the depth


def test_published_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='Convpass', width=8) == 327_552


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(at='attn'), 'resnet', UnknownNameError, r"'attn'.*roles of resnet18"),
        (
            dict(),
            'swin',
            NoSiteError,
            r"Convpass needs .*whole image.*'layers\.0\.blocks\.0\.attn' \(WindowAttention, .*\(16, 16\).*"
            r"at='block' works\.$",
        ),
        (
            dict(at='backbone'),
            'resnet',
            NoSiteError,
            r"keeps its shape or makes a smaller map, but 'the backbone' \(ResNet, which takes \(3, 32, 32\)",
        ),
        (
            dict(at='layers.1.blocks.0.mlp'),
            'swin',
            NoSiteError,
            r"grid of \(8, 8\), or a map, but 'layers\.1\.blocks\.0\.mlp'.*\(16, 32\)",
        ),
        (dict(width=0), 'vit', UserError, r'width is 0'),
        (dict(dropout=1.0), 'vit', UserError, r'dropout is 1\.0'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='Convpass', **config)).attach(tiny(family))
