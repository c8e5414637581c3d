"""Prefix tuning against attention written out in float64, and against the published count."""

import functools
import math

import pytest
import torch

from tests.nets import VIT, images, timm_net, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


def prefix(**config: object) -> Tuner:
    return TUNERS.build(dict(type='Prefix', **config))


@pytest.mark.parametrize('family', ['vit', 'clip', 'deit-distilled'])
@pytest.mark.parametrize('fused', [True, False])
def test_attention_has_more_keys_and_values(family, fused):
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), prefix(length=3)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    attn, delta = backbone.network.blocks[1].attn, tuner.deltas['blocks/1/attn/qkv']
    attn.fused_attn = fused
    with torch.no_grad():
        delta.key.normal_(), delta.value.normal_()
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).chunk(3, -1)
    k, v = (
        torch.cat([own, learned.expand(2, -1, -1)], 1) for own, learned in ((k, delta.key), (v, delta.value))
    )
    d = 32 // attn.num_heads
    heads = [
        torch.softmax(q[..., s] @ k[..., s].mT / math.sqrt(d), -1) @ v[..., s]
        for s in (slice(h * d, (h + 1) * d) for h in range(attn.num_heads))
    ]
    expected = torch.cat(heads, -1) @ attn.proj.weight.T + attn.proj.bias
    assert attn(x).shape == x.shape
    assert torch.allclose(attn(x), expected, rtol=0, atol=1e-8)


def test_works_beside_prompts_and_lora():
    backbone = tiny('vit').eval()
    for config in (dict(type='LoRA', rank=2), dict(type='VPT', length=2), dict(type='Prefix', length=3)):
        TUNERS.build(config).attach(backbone)
    assert backbone(images(2)).isfinite().all()


@functools.cache
def vit_b16() -> Backbone:
    return timm_net('vit_base_patch16_224', img_size=32, weight_init='skip')


@pytest.mark.parametrize('length, count', [(1, 18_432), (10, 184_320), ([0] * 11 + [2], 3_072)])
def test_published_counts_on_vit_b16(length, count):
    tuner = prefix(length=length)
    tuner.attach(vit_b16())
    assert sum(parameter.numel() for _, parameter in tuner.trainable()) == count
    assert all(parameter.no_weight_decay for _, parameter in tuner.trainable())
    tuner.detach()


def test_start_is_uniform_as_modelscope_draws_it():
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='Prefix', length=40))
    tuner.attach(tiny('vit'))
    bound = (6 / (32 * (40 + 1))) ** 0.5  # xavier of (1, P, C): fans P C and C
    deltas = [delta for delta in tuner.deltas.values() if hasattr(delta, 'key')]
    drawn = torch.cat([torch.cat([delta.key, delta.value]) for delta in deltas])
    assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.03) and drawn.abs().max() <= bound


def test_the_default_length_is_ten():
    tuner = prefix()
    tuner.attach(vit_b16())
    assert sum(parameter.numel() for _, parameter in tuner.trainable()) == 184_320
    tuner.detach()


@pytest.mark.parametrize(
    'net, error, text',
    [
        (lambda: tiny('resnet'), UnknownNameError, r"'attn'.*roles of resnet18"),
        (
            lambda: tiny('swin'),
            NoSiteError,
            r"free of 'relative_position_bias_table', but 'layers\.0\.blocks\.0\.attn' \(WindowAttention",
        ),
        (
            lambda: tiny('torchvision-vit'),
            NoSiteError,
            r"fused qkv layer, but .*self_attention' \(MultiheadAttention, .*\(17, 32\)",
        ),
        (lambda: timm_net('beit_base_patch16_224', **VIT), NoSiteError, r"free of 'shared_rel_pos_bias'"),
        (lambda: timm_net('eva02_tiny_patch14_224', **VIT), NoSiteError, r"free of 'rope'"),
        (
            lambda: timm_net('vit_tiny_patch16_224', **VIT, qk_norm=True),
            NoSiteError,
            r"unnormed keys, but 'blocks\.0\.attn'",
        ),
    ],
    ids=['resnet', 'swin', 'torchvision', 'beit', 'eva', 'qk-norm'],
)
def test_refuses_attention_that_is_not_plain(net, error, text):
    backbone = net()
    with pytest.raises(error, match=text):
        prefix().attach(backbone)


@pytest.mark.parametrize('length, text', [(0, 'length is 0'), ([1], 'length has 1 values')])
def test_refuses_nonsense(length, text):
    with pytest.raises(UserError, match=text):
        prefix(length=length).attach(tiny('vit'))
