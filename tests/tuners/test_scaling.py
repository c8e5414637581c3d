"""IA3, SSF and RLRR against their equations in float64, and their published counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import images, tiny
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError
from vet.registry import TUNERS


def tuned(family: str, **config: object) -> tuple[nn.Module, Tuner]:
    """A float64 network in eval with a tuner whose every parameter is random."""
    torch.manual_seed(0)
    backbone = tiny(family).eval()
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    for parameter in tuner.deltas.parameters():
        nn.init.normal_(parameter)
    return backbone.network, tuner


def attention(qkv: torch.Tensor, heads: int, l_k: torch.Tensor, l_v: torch.Tensor) -> torch.Tensor:
    """(B, N, 3 C) -> (B, N, C)"""
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    q, k, v = qkv.chunk(3, -1)
    q, k, v = (t.view(B, N, heads, C // heads).transpose(1, 2) for t in (q, l_k * k, l_v * v))
    weights = (q @ k.transpose(-2, -1) / (C // heads) ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, N, C)


def test_ia3_scales_keys_values_and_hidden_features():
    network, tuner = tuned('vit', type='IA3')
    block = network.blocks[1]
    l_k, l_v = tuner.deltas['blocks/1/attn/qkv'].gamma.chunk(2)
    l_ff = tuner.deltas['blocks/1/mlp/fc2'].gamma
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    plain = tiny('vit').double().eval().network.blocks[1]
    h = x + plain.attn.proj(attention(plain.attn.qkv(plain.norm1(x)), 2, l_k, l_v))
    expected = h + plain.mlp.fc2(l_ff * F.gelu(plain.mlp.fc1(plain.norm2(h))))
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'family, site', [('resnet', 'layer2.0.conv1'), ('convnext', 'stages.1.blocks.0.conv_dw')]
)
def test_ia3_of_a_convolution_scales_its_input_channels(family, site):
    network, tuner = tuned(family, type='IA3', at=site)
    conv, gamma = network.get_submodule(site), tuner.deltas[site.replace('.', '/')].gamma
    x = torch.randn(2, conv.in_channels, 9, 9, dtype=torch.float64)
    plain = tiny(family).double().network.get_submodule(site)
    assert torch.allclose(conv(x), plain(gamma[:, None, None] * x), rtol=0, atol=1e-8)


@pytest.mark.parametrize('family, sites', [('vit', 3 * 6 + 2), ('resnet', 26)])
def test_ssf_scales_and_shifts_what_every_operation_gives(family, sites):
    network, tuner = tuned(family, type='SSF')
    assert len(tuner.deltas) == sites
    plain = tiny(family).double().eval().network

    def edit(delta: nn.Module, y: torch.Tensor) -> torch.Tensor:
        shape = (-1, 1, 1) if y.dim() == 4 else (-1,)
        return delta.gamma.view(shape) * y + (0 if delta.beta is None else delta.beta.view(shape))

    for name, delta in tuner.deltas.items():
        module = plain.get_submodule(name.replace('/', '.'))
        assert (delta.beta is None) == (module.bias is None)
        module.register_forward_hook(lambda m, args, y, delta=delta: edit(delta, y))
    x = images(2).double()
    assert torch.allclose(network(x), plain(x), rtol=1e-8, atol=1e-8)


def test_ssf_reaches_the_packed_projection_that_no_module_calls():
    network, tuner = tuned('torchvision-vit', type='SSF')
    site, ones = 'encoder.layers.encoder_layer_0.self_attention', torch.ones(32, dtype=torch.float64)
    packed, out = (tuner.deltas[f'{site.replace(".", "/")}/{leaf}'] for leaf in ('in_proj', 'out_proj'))
    attn, x = (
        tiny('torchvision-vit').double().network.get_submodule(site),
        torch.randn(2, 17, 32, dtype=torch.float64),
    )
    qkv = packed.gamma * (x @ attn.in_proj_weight.T + attn.in_proj_bias) + packed.beta
    expected = out.gamma * attn.out_proj(attention(qkv, 2, ones, ones)) + out.beta
    assert torch.allclose(
        network.get_submodule(site)(x, x, x, need_weights=False)[0], expected, rtol=0, atol=1e-8
    )


def test_ssf_starts_near_one_or_at_it():
    deltas = []
    for std in (0.02, 0):
        torch.manual_seed(0)
        tuner = TUNERS.build(dict(type='SSF', std=std))
        tuner.attach(tiny('vit'))
        deltas.append(torch.cat([delta.gamma for delta in tuner.deltas.values()]))
        assert tuner.identity_at_start == (std == 0)
    assert deltas[0].mean().item() == pytest.approx(1, abs=0.005) and deltas[0].std().item() == pytest.approx(
        0.02, rel=0.1
    )
    assert (deltas[1] == 1).all()


def test_rlrr_adds_a_rescaled_copy_of_each_weight():
    network, tuner = tuned('vit', type='RLRR')
    plain = tiny('vit').double().eval().network
    x = torch.randn(5, 32, dtype=torch.float64)
    qkv, delta = plain.blocks[1].attn.qkv, tuner.deltas['blocks/1/attn/qkv']
    expected = torch.empty(5, 96, dtype=torch.float64)
    for row in range(96):
        rescaled = delta.left[row] * qkv.weight[row] * delta.right[row // 32]
        expected[:, row] = x @ (qkv.weight[row] + rescaled) + qkv.bias[row] + delta.f[row]
    assert torch.allclose(network.blocks[1].attn.qkv(x), expected, rtol=0, atol=1e-8)
    fc1, delta = plain.blocks[1].mlp.fc1, tuner.deltas['blocks/1/mlp/fc1']
    W = fc1.weight + torch.diag(delta.left[:, 0]) @ fc1.weight @ torch.diag(delta.right[0])
    assert torch.allclose(network.blocks[1].mlp.fc1(x), x @ W.T + fc1.bias + delta.f, rtol=0, atol=1e-8)
    norm, delta = plain.blocks[1].norm1, tuner.deltas['blocks/1/norm1']
    assert torch.allclose(network.blocks[1].norm1(x), delta.gamma * norm(x) + delta.beta, rtol=0, atol=1e-8)


def test_rlrr_of_a_convolution_scales_both_sides_of_each_kernel():
    network, tuner = tuned('resnet', type='RLRR')
    conv, delta = tiny('resnet').double().network.layer2[0].conv1, tuner.deltas['layer2/0/conv1']
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = conv(x) + delta.left[:, :, None] * conv(delta.right[0][:, None, None] * x)
    assert delta.f is None and torch.allclose(network.layer2[0].conv1(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'config, number',
    [(dict(type='IA3'), 55_296), (dict(type='SSF'), 205_824), (dict(type='RLRR'), 288_768)],
    ids=str,
)
def test_published_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(type='IA3'), 'resnet', UnknownNameError, r"'attn\.qkv'.*roles of resnet18"),
        (
            dict(type='IA3', at='norm'),
            'vit',
            NoSiteError,
            r"IA3 needs a weight matrix, but 'blocks\.0\.norm1' \(LayerNorm.*\(17, 32\)",
        ),
        (dict(type='SSF', at='block'), 'vit', NoSiteError, r"'blocks\.0' \(Block.* has no weight"),
        (dict(type='SSF', at='norm'), 'vgg', UnknownNameError, r"'norm'.*roles of vgg.*at='weight' works"),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, family, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(config).attach(tiny(family))
