"""Prefix tuning against attention written out in float64, and against the published count."""

import math

import pytest
import torch
import transformers as hf
from torch import nn

import vet
from tests.nets import VIT, images, randomised, timm_net, tiny
from tests.own_nets import TRANSFORMERS
from tests.own_nets import VIT as SMALL
from vet.core.deltas import Unbiased
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


def with_prefix(x, weights, prefix, heads, bias=0.0):
    """softmax(q [K; P_k]' / sqrt(d) + bias) [V; P_v] in each head, with a bias of zero for the prefix."""
    q, k, v = (x @ weight.T + shift for weight, shift in weights)
    k, v = (torch.cat([own, new.expand(len(x), -1, -1)], 1) for own, new in zip((k, v), prefix))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores[..., : x.shape[1]] += bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('name', ['vit_relpos_medium_patch16_cls_224', 'vit_srelpos_small_patch16_224'])
def test_a_bias_of_relative_positions_leaves_the_prefix_alone(name, fused):
    torch.manual_seed(0)
    backbone, tuner = timm_net(name, **VIT).eval(), prefix(length=3)
    network = backbone.network
    for parameter in network.parameters():
        parameter.normal_(0, 0.2)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    attn, delta = network.blocks[1].attn, tuner.deltas['blocks/1/attn/qkv']
    attn.fused_attn = fused
    delta.key.normal_(), delta.value.normal_()
    seen = {}
    attn.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    backbone(images(2).double())
    x, shared = seen['x'][:, :-3], getattr(network, 'shared_rel_pos', None)  # without the empty tokens
    source = attn.rel_pos if shared is None else shared
    bias = type(source).get_bias(source)
    weights = [
        (weight, 0.0) for weight in attn.qkv.weight.chunk(3)
    ]  # these attentions have no bias of q, k, v
    expected = with_prefix(x, weights, (delta.key, delta.value), attn.num_heads, bias)
    expected = expected @ attn.proj.weight.T + attn.proj.bias
    assert bias.abs().max() > 0.01
    torch.testing.assert_close(seen['out'][:, : x.shape[1]], expected, rtol=0, atol=1e-10)


def beit_of(**settings: object) -> nn.Module:
    return hf.BeitForImageClassification(hf.BeitConfig(**SMALL, **settings, num_labels=5))


# {network: the path of an attention, its last layer, where the bias of its scores is computed}
SEPARATE = {
    'vit': (TRANSFORMERS['vit'], 'vit.layers.1.attention', 'o_proj', ''),
    'clip': (TRANSFORMERS['clip'], 'encoder.layers.1.self_attn', 'out_proj', ''),
    'siglip': (TRANSFORMERS['siglip'], 'encoder.layers.1.self_attn', 'out_proj', ''),
    'beit': (
        TRANSFORMERS['beit'],
        'beit.layers.1.attention',
        'o_proj',
        'beit.layers.1.relative_position_bias',
    ),
    'beit-shared': (
        lambda: beit_of(use_shared_relative_position_bias=True),
        'beit.layers.1.attention',
        'o_proj',
        'beit.shared_position_bias',
    ),
}


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:vet knows no classifier')
@pytest.mark.parametrize('family', SEPARATE)
def test_separate_layers_for_queries_keys_and_values(family):
    torch.manual_seed(0)
    make, path, last, source = SEPARATE[family]
    net = make().eval()
    for parameter in net.parameters():
        parameter.normal_(0, 0.2)
    tuned = vet.tune(net, vet.Prefix(length=3)).double().eval()
    attn, deltas = net.get_submodule(path), tuned.tuners[0].deltas
    key = deltas[f'{path}.k_proj'.replace('.', '/')].key.normal_()
    value = deltas[f'{path}.v_proj'.replace('.', '/')].value.normal_()
    seen = {}
    attn.register_forward_hook(
        lambda _, args, named, out: seen.update(x=(*args, *named.values())[0], out=out[0]), with_kwargs=True
    )
    tuned(images(2).double())
    x = seen['x'][:, :-3]  # without the empty tokens
    if source:
        table = net.get_submodule(source)
        bias = type(table).forward(table, (4, 4), dim_size=17)
        assert bias.abs().max() > 0.01
    else:
        bias = 0.0
    weights = [
        (layer.weight, 0.0 if layer.bias is None else layer.bias)
        for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
    ]
    last = attn.get_submodule(last)
    expected = with_prefix(x, weights, (key, value), 2, bias) @ last.weight.T + last.bias
    assert seen['out'].shape == x.shape
    torch.testing.assert_close(seen['out'], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_class_attention_asks_with_the_class_token_alone():
    backbone, tuner = randomised(timm_net('cait_xxs24_224', **VIT)).eval(), prefix(length=3)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    attn = backbone.network.blocks_token_only[1].attn
    key = tuner.deltas['blocks_token_only/1/attn/k'].key.normal_()
    value = tuner.deltas['blocks_token_only/1/attn/v'].value.normal_()
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    weights = [(layer.weight, layer.bias) for layer in (attn.q, attn.k, attn.v)]
    expected = with_prefix(x, weights, (key, value), 2)[:, :1] @ attn.proj.weight.T + attn.proj.bias
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('tuner', [vet.Prefix(length=2), vet.VPT(length=2)], ids=['Prefix', 'VPT'])
def test_rotary_positions_of_transformers_are_refused(tuner):
    """Its last tokens are rotated as patches, and further tokens would shift them."""
    with pytest.raises(UserError, match="free of 'position_embeddings'"):
        vet.tune(TRANSFORMERS['dinov3'](), tuner, train='norm')


def test_works_beside_prompts_and_lora():
    backbone = tiny('vit').eval()
    for config in (dict(type='LoRA', rank=2), dict(type='VPT', length=2), dict(type='Prefix', length=3)):
        TUNERS.build(config).attach(backbone)
    assert backbone(images(2)).isfinite().all()


@pytest.mark.parametrize('length, count', [(1, 18_432), (10, 184_320), ([0] * 11 + [2], 3_072)])
def test_published_counts_on_vit_b16(vit_b16, length, count):
    tuner = prefix(length=length)
    tuner.attach(vit_b16)
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


def test_the_default_length_is_ten(count_on_vit_b16):
    assert count_on_vit_b16(type='Prefix') == 184_320


@pytest.mark.parametrize(
    'net, error, text',
    [
        (lambda: tiny('resnet'), UnknownNameError, r"'attn'.*roles of resnet18"),
        (
            lambda: tiny('swin'),
            NoSiteError,
            r"plain attention over all tokens, but 'layers\.0\.blocks\.0\.attn' \(WindowAttention",
        ),
        (
            lambda: tiny('torchvision-vit'),
            NoSiteError,
            r"self_attention\.in_proj' is read and never called\), but .*self_attention' \(MultiheadAttention",
        ),
        (
            lambda: timm_net('beit_base_patch16_224', **VIT),
            NoSiteError,
            r"calls its layers \('blocks\.0\.attn\.qkv' is read and never called\), but 'blocks\.0\.attn'",
        ),
        (
            lambda: timm_net('xcit_nano_12_p8_224', 32, depth=1),
            NoSiteError,
            r"scores between tokens, not between channels, but 'blocks\.0\.attn' \(XCA",
        ),
        (lambda: timm_net('eva02_tiny_patch14_224', **VIT), NoSiteError, r"free of 'rope'"),
        (
            lambda: timm_net('vit_tiny_patch16_224', **VIT, qk_norm=True),
            NoSiteError,
            r"unnormed keys, but 'blocks\.0\.attn'",
        ),
    ],
    ids=['resnet', 'swin', 'torchvision', 'beit', 'xcit', 'eva', 'qk-norm'],
)
def test_refuses_attention_that_is_not_plain(net, error, text):
    backbone = net()
    with pytest.raises(error, match=text):
        prefix().attach(backbone)


def test_a_mask_of_bool_shows_the_prefix():
    mask = torch.tensor([[True, False], [True, True]])[None, None]
    expected = [[True, False, True], [True, True, True], [True, True, True]]
    assert Unbiased(1)(mask)[0, 0].tolist() == expected


@pytest.mark.parametrize('length, text', [(0, 'length is 0'), ([1], 'length has 1 values')])
def test_refuses_nonsense(length, text):
    with pytest.raises(UserError, match=text):
        prefix(length=length).attach(tiny('vit'))
