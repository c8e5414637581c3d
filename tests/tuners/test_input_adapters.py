"""RepAdapter and ARC against their equations in float64: what they do to the input of a frozen weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import VIT, images, tiny
from vet.core.model import ImageClassifier
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.heads.linear import LinearHead
from vet.registry import TUNERS


def tuned(family: str, **config: object) -> tuple[nn.Module, nn.Module, Tuner]:
    """A float64 network with a tuner whose every parameter is random, and the same network without."""
    torch.manual_seed(0)
    backbone = tiny(family).eval()
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    for parameter in tuner.deltas.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone.network, tiny(family).double().eval().network, tuner


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_rep_adapter_is_two_grouped_projections_before_attention_and_mlp(groups):
    network, plain, tuner = tuned('vit', type='RepAdapter', width=8, groups=groups, scale=0.7)
    x = torch.randn(2, 17, 32, dtype=torch.float64)

    def adapter(name: str, x: torch.Tensor) -> torch.Tensor:
        """As the paper writes it: a dense and a grouped 1 x 1 convolution over (B, C, N)."""
        d = tuner.deltas[name]
        hidden = F.conv1d(x.transpose(1, 2), d.A[:, :, None], d.a)
        return x + 0.7 * F.conv1d(hidden, d.B[:, :, None], d.b, groups=groups).transpose(1, 2)

    block = plain.blocks[1]
    h = x + block.attn(adapter('blocks/1/attn/qkv', block.norm1(x)))
    expected = h + block.mlp(adapter('blocks/1/mlp/fc1', block.norm2(h)))
    assert torch.allclose(network.blocks[1](x), expected, rtol=0, atol=1e-8)


def test_arc_recomposes_shared_symmetric_projections():
    network, plain, tuner = tuned('vit', type='ARC', width=5)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    P_attn, P_mlp = (tuner.deltas['shared'][key] for key in ('96x32', '128x32'))
    for i, block in enumerate(plain.blocks):
        attn, mlp = (tuner.deltas[f'blocks/{i}/{name}'] for name in ('attn/qkv', 'mlp/fc1'))
        normed = block.norm1(x)
        h = x + block.attn(normed + normed @ P_attn @ torch.diag(attn.c) @ P_attn.T + attn.b)
        normed = block.norm2(h)
        expected = h + block.mlp(normed + normed @ P_mlp @ torch.diag(mlp.c) @ P_mlp.T + mlp.b)
        assert torch.allclose(network.blocks[i](x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('type', ['RepAdapter', 'ARC'])
def test_dropout_stands_in_the_bottleneck(type):
    network, plain, tuner = tuned('vit', type=type, width=4, dropout=0.5)
    x, (qkv, frozen) = (
        torch.randn(6, 32, dtype=torch.float64),
        (net.blocks[1].attn.qkv for net in (network, plain)),
    )
    delta = tuner.deltas['blocks/1/attn/qkv']
    A, B = delta.factors()
    hidden, outer = (delta.a, delta.b) if type == 'RepAdapter' else (0, delta.b)
    tuner.train()
    torch.manual_seed(1)
    found = qkv(x)
    torch.manual_seed(1)
    h = F.dropout(x @ A.T + hidden, 0.5)
    assert torch.allclose(found, frozen(x + h @ B.T + outer), rtol=0, atol=1e-8)
    assert 0 < (h == 0).sum() < h.numel()
    tuner.eval()
    assert torch.allclose(qkv(x), frozen(x + (x @ A.T + hidden) @ B.T + outer), rtol=0, atol=1e-8)


def test_arcs_released_start_draws_the_scales_of_the_ffn():
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='ARC', width=50, drawn_at_mlp=True))
    tuner.attach(tiny('vit'))
    drawn = torch.cat([tuner.deltas[f'blocks/{i}/mlp/fc1'].c for i in range(3)])
    assert drawn.std().item() == pytest.approx((6 / 51 / 3) ** 0.5, rel=0.15)
    assert not tuner.deltas['blocks/0/attn/qkv'].c.any() and not tuner.identity_at_start


def test_arc_shares_by_shape_in_each_stage():
    _, _, tuner = tuned('swin', type='ARC', width=5)
    assert set(tuner.deltas['shared']) == {'48x16', '64x16', '96x32', '128x32'}


@pytest.mark.parametrize('config', [dict(type='RepAdapter', width=4), dict(type='ARC', width=4)], ids=str)
def test_one_by_one_convolution_whose_bias_takes_the_shift(config):
    network, plain, tuner = tuned('vgg', at='pre_logits.fc2', **config)
    conv, frozen, delta = network.pre_logits.fc2, plain.pre_logits.fc2, tuner.deltas['pre_logits/fc2']
    x = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    (A, B), shift = delta.factors(), delta.shift()
    edited = x + torch.einsum('ck,kd,bdhw->bchw', B, A, x) + shift[:, None, None]
    assert torch.allclose(conv(x), frozen(edited), rtol=0, atol=1e-8)


@pytest.mark.parametrize('config', [dict(type='RepAdapter', width=4), dict(type='ARC', width=4)], ids=str)
def test_linear_under_two_tuners_forms_the_weight_in_their_order(config):
    backbone = tiny('vit').eval()
    torch.manual_seed(0)
    tuners = [TUNERS.build(dict(type='LoRA', rank=2)), TUNERS.build(config)]
    for tuner in tuners:
        tuner.attach(backbone)
        for parameter in tuner.deltas.parameters():
            nn.init.normal_(parameter, std=0.3)
    backbone.double(), tuners[0].double(), tuners[1].double()
    qkv, x = backbone.network.blocks[0].attn.qkv, torch.randn(3, 32, dtype=torch.float64)
    lora, other = (tuner.deltas['blocks/0/attn/qkv'] for tuner in tuners)
    (A, B), shift = other.factors(), other.shift()
    expected = (x + x @ A.T @ B.T + shift) @ (qkv.weight + lora.B @ lora.A).T + qkv.bias
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)
    tuners[0].detach()
    expected = (x + x @ A.T @ B.T + shift) @ qkv.weight.T + qkv.bias
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'types',
    [('SSF', 'RepAdapter', 'LoHa'), ('ARC', 'FacT', 'IA3'), ('LoKr', 'RLRR', 'DiffFit')],
    ids='-'.join,
)
def test_three_kinds_merge_into_one_plain_network_in_their_order(types):
    torch.manual_seed(0)
    backbone = tiny('vit')
    model = ImageClassifier(
        backbone, [TUNERS.build(dict(type=type)) for type in types], LinearHead(32, 3), 'abc'
    ).eval()
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = images(4)
    with torch.no_grad():
        before = backbone(x)
        network = model.merge()
        assert type(network)(**VIT, num_classes=0).load_state_dict(network.state_dict(), strict=True)
        assert (network(x) - before).abs().max() <= 1e-5 * before.abs().max()
        model.unmerge()
        assert torch.equal(backbone(x), before)


def test_without_a_bias_nothing_is_shifted_and_no_key_is_added():
    backbone = tiny('vit')
    for block in backbone.network.blocks:
        block.attn.qkv.bias = None
    for type, width in (('RepAdapter', 4), ('ARC', 4)):
        tuner = TUNERS.build(dict(type=type, width=width, at='attn.qkv'))
        tuner.attach(backbone)
        delta = tuner.deltas['blocks/0/attn/qkv']
        assert delta.shift() is None and delta.b is None
        assert delta(backbone.network.blocks[0].attn.qkv.weight, None)[1] is None
        tuner.detach()


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(type='RepAdapter'), 239_808),
        (dict(type='ARC'), 96_432),
        (dict(type='ARC', at='attn.qkv'), 48_216),
    ],
    ids=str,
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (
            dict(type='RepAdapter', at='weight'),
            'resnet',
            NoSiteError,
            r"RepAdapter needs a Linear or an ungrouped 1 x 1 .*'layer1\.0\.conv1'",
        ),
        (
            dict(type='ARC', at='weight'),
            'resnet',
            NoSiteError,
            r"ARC needs a Linear or an ungrouped 1 x 1 .*'layer1\.0\.conv1'",
        ),
        (dict(type='ARC', at='norm'), 'vit', NoSiteError, r"ARC needs a Linear .*'blocks\.0\.norm1'"),
        (
            dict(type='RepAdapter', width=3),
            'vit',
            UserError,
            r'groups is 2; groups must divide the width 3 and the 32 channels of',
        ),
        (dict(type='RepAdapter', groups=0), 'vit', UserError, r'groups is 0; (allowed|it must be)'),
        (dict(type='RepAdapter'), 'resnet', UnknownNameError, r"'attn\.qkv'.*roles of resnet18"),
        (dict(type='ARC', width=0), 'vit', UserError, r'width is 0; it must be at least 1'),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, family, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(config).attach(tiny(family))
