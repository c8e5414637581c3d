"""MoLoRA against its equation written out in float64, token by token and image by image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract.runs import with_head
from tests.nets import images, tiny, tuned
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS
from vet.tuners.molora import Experts


def gates(G: torch.Tensor, x: torch.Tensor, topk: int) -> list[float]:
    """softmax(G x) of one input x (in,), of which the k largest are kept and divided by their sum."""
    weights = [torch.exp(row @ x).item() for row in G]
    kept = sorted(weights, reverse=True)[:topk]
    return [weight / sum(kept) if weight in kept else 0.0 for weight in weights]


@pytest.mark.parametrize('topk', [None, 2])
def test_linear_mixes_experts_for_each_token(topk):
    backbone, tuner = tuned('vit', type='MoLoRA', rank=2, experts=3, topk=topk, alpha=3, at='mlp.fc1')
    fc1, d = backbone.network.blocks[1].mlp.fc1, tuner.deltas['blocks/1/mlp/fc1']
    assert d.A.weight.shape == (6, 32) and d.B.shape == (128, 6) and d.G.weight.shape == (3, 32)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    expected = x @ fc1.weight.T + fc1.bias
    for b in range(2):
        for n in range(5):
            for e, g in enumerate(gates(d.G.weight, x[b, n], topk or 3)):
                expected[b, n] += (
                    1.5 * g * d.B[:, 2 * e : 2 * e + 2] @ (d.A.weight[2 * e : 2 * e + 2] @ x[b, n])
                )
    assert torch.allclose(fc1(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('topk', [None, 2])
@pytest.mark.parametrize('site', ['layer1.0.conv2', 'layer2.0.conv1', 'layer2.0.downsample.0'])
def test_convolution_mixes_experts_for_each_image(site, topk):
    backbone, tuner = tuned('resnet', type='MoLoRA', rank=2, experts=3, topk=topk, at='weight')
    conv, d = backbone.network.get_submodule(site), tuner.deltas[site.replace('.', '/')]
    x = torch.randn(4, conv.in_channels, 7, 9, dtype=torch.float64)
    outputs = []
    for image in x:
        W = conv.weight.flatten(1)
        for e, g in enumerate(gates(d.G.weight, image.mean((1, 2)), topk or 3)):
            W = W + g * d.B[:, 2 * e : 2 * e + 2] @ d.A.weight.flatten(1)[2 * e : 2 * e + 2]
        outputs.append(
            F.conv2d(image, W.view_as(conv.weight), conv.bias, conv.stride, conv.padding, conv.dilation)
        )
    assert torch.allclose(conv(x), torch.stack(outputs), rtol=0, atol=1e-8)


def test_convolutions_own_padding_and_dilation_are_kept():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, padding_mode='reflect', bias=False).double()
    delta = Experts(conv, 2, 2, None, 1.0).double()
    with torch.no_grad():
        delta.B.normal_(), delta.G.weight.zero_()  # both experts count half
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    y = conv(x)
    conv.weight.data += 0.5 * (delta.B @ delta.A.weight.flatten(1)).view_as(conv.weight)
    assert torch.allclose(delta(x, y), conv(x), rtol=0, atol=1e-8)


def test_topk_trains_the_gate_and_the_experts_it_kept():
    backbone, tuner = tuned('vit', type='MoLoRA', rank=2, experts=4, topk=2, at='blocks.2.mlp.fc1')
    delta = tuner.deltas['blocks/2/mlp/fc1']
    x = torch.randn(1, 32, dtype=torch.float64)
    g = delta.gate(x)[0]
    assert g.count_nonzero() == 2 and g.sum().item() == pytest.approx(1)
    backbone.network.blocks[2].mlp.fc1(x).square().sum().backward()
    used = g != 0
    assert torch.equal(delta.B.grad.view(128, 4, 2).abs().sum((0, 2)) != 0, used)
    assert torch.equal(delta.A.weight.grad.view(4, 2, 32).abs().sum((1, 2)) != 0, used)
    assert torch.equal(delta.G.weight.grad.abs().sum(1) != 0, used)


def test_experts_start_apart_and_their_update_at_zero():
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='MoLoRA', rank=4, experts=2))
    tuner.attach(tiny('vit'))
    for delta in tuner.deltas.values():
        first, second = delta.A.weight.chunk(2)
        assert not delta.B.any() and not torch.equal(first, second)
        assert delta.A.weight.abs().max() <= 32**-0.5
        assert delta.A.weight.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.15)


def test_depends_on_the_input_and_is_not_merged():
    model = with_head(tiny('vit'), [TUNERS.build(dict(type='MoLoRA'))])
    with pytest.raises(UserError, match='MoLoRA cannot be merged: it changes inputs or outputs of modules'):
        model.merge()
    backbone, tuner = tuned('vit', type='MoLoRA', at='blocks.2.mlp.fc2')
    fc2 = backbone.network.blocks[2].mlp.fc2
    x, z = torch.randn(2, 7, 128, dtype=torch.float64)
    assert (fc2(x + z) - fc2(x) - fc2(z) + fc2(0 * x)).abs().max() > 1e-2  # no linear map
    assert not torch.allclose(backbone(images(2).double()), tiny('vit').eval().double()(images(2).double()))


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(), 626_688),
        (dict(rank=2, experts=8), 12 * 8 * (2 * (768 + 2304) + 768)),
        (dict(rank=[0] * 11 + [4]), 626_688 // 12),
    ],
    ids=str,
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(type='MoLoRA', **config) == number


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(experts=1), 'vit', UserError, r'experts is 1; (allowed|it must be): 2 or more'),
        (dict(topk=1), 'vit', UserError, r'topk is 1; (allowed|it must be): 2 to 4, the number of experts'),
        (dict(topk=5), 'vit', UserError, r'topk is 5; (allowed|it must be)'),
        (dict(rank=0), 'vit', UserError, r'rank is 0'),
        (
            dict(at='norm'),
            'vit',
            NoSiteError,
            r"MoLoRA needs a Linear or a plain Conv2d of one group, but 'blocks\.0\.norm1' \(Layer",
        ),
        (dict(at='block'), 'vit', NoSiteError, r"plain Conv2d of one group, but 'blocks\.0' \(Block"),
        (
            dict(at='*.conv_dw'),
            'convnext',
            NoSiteError,
            r"plain Conv2d of one group, but 'stages\.0\.blocks\.0\.conv_dw' \(Conv2d",
        ),
        (dict(), 'torchvision-vit', NoSiteError, r"MoLoRA needs .*, but '.*in_proj' \(MultiheadAttention"),
        (
            dict(at='*.out_proj'),
            'torchvision-vit',
            NoSiteError,
            r"MoLoRA.*'.*out_proj' \(NonDynamicallyQuantizableLinear",
        ),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, family, error, text):
    backbone = tiny(family)
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='MoLoRA', **config)).attach(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())
