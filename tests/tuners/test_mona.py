"""Mona against its equation on a ViT block and a Swin block, and its start."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer

from tests.nets import VIT, images, tiny, tuned
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone
from vet.core.preprocessing import Preprocessing
from vet.errors import NoSiteError
from vet.registry import TUNERS


def bank(delta, y_BHWC):
    """y + W2 gelu(g(f(W1 n(y)))) of one adapter, place by place."""
    n = delta.gamma * F.layer_norm(y_BHWC, y_BHWC.shape[-1:], delta.norm.weight, delta.norm.bias)
    h = (n + delta.gamma_x * y_BHWC) @ delta.down.weight.T + delta.down.bias
    mean = torch.zeros_like(h)
    for conv in delta.convs:
        k = conv.kernel_size[0]
        padded = F.pad(h, (0, 0, k // 2, k // 2, k // 2, k // 2))
        for i in range(k):
            for j in range(k):
                mean += conv.weight[:, 0, i, j] * padded[:, i : i + h.shape[1], j : j + h.shape[2]] / 3
        mean += conv.bias / 3
    h = h + mean
    h = h + h @ delta.mix.weight[:, :, 0, 0].T + delta.mix.bias
    return y_BHWC + F.gelu(h) @ delta.up.weight.T + delta.up.bias


def test_the_convolutions_see_the_patches_of_a_vit_as_a_map():
    backbone, tuner = tuned('vit', type='Mona', width=5)
    block, plain = backbone.network.blocks[1], tiny('vit').eval().double().network.blocks[1]
    middle, end = tuner.deltas['blocks/1/norm2'], tuner.deltas['blocks/1#1']
    x = torch.randn(2, 17, 32, dtype=torch.float64)

    def adapted(delta, y):
        first = bank(delta, y[:, :1].unsqueeze(1))[:, 0]  # the class token is a map of 1 x 1
        return torch.cat([first, bank(delta, y[:, 1:].unflatten(1, (4, 4))).flatten(1, 2)], 1)

    h = adapted(middle, x + plain.attn(plain.norm1(x)))
    wanted = adapted(end, h + plain.mlp(plain.norm2(h)))
    assert torch.allclose(block(x), wanted, atol=1e-10)


def test_both_adapters_see_the_map_of_a_swin_block():
    backbone, tuner = tuned('swin', type='Mona', width=5)
    name = backbone.sites.blocks[0]
    block, plain = (net.network.get_submodule(name) for net in (backbone, tiny('swin').eval().double()))
    middle, end = (tuner.deltas[f'{name}{rest}'.replace('.', '/')] for rest in ('.norm2', '#1'))
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    h = bank(middle, x + plain._attn(plain.norm1(x)))
    wanted = bank(end, h + plain.mlp(plain.norm2(h)))
    assert torch.allclose(block(x), wanted, atol=1e-10)


def test_a_map_has_no_prefix_tokens_though_the_network_has():
    """The norm of a block sees the map (H, W, C) as tokens. Class tokens come in later blocks."""
    network = tiny('swin').network
    layout = find_layout(network, grid=(4, 4), num_prefix_tokens=1)
    backbone = Backbone(network, layout, Preprocessing(size=(32, 32)), dict(type='test', name='swin'))
    tuner = TUNERS.build(dict(type='Mona', width=4))
    tuner.attach(backbone)
    middle = [delta for name, delta in tuner.deltas.items() if name.endswith('norm2')]
    assert {(delta.grid, delta.prefix) for delta in middle} == {((8, 8), 0), ((4, 4), 0)}


def test_the_start():
    backbone = tiny('vit')
    tuner = TUNERS.build(dict(type='Mona'))
    tuner.attach(backbone)
    for delta in tuner.deltas.values():
        if hasattr(delta, 'gamma'):
            assert delta.gamma.unique().tolist() == pytest.approx([1e-6])
            assert delta.gamma_x.unique().tolist() == [1.0]
            assert delta.down.weight.abs().max() <= 32**-0.5 and delta.up.weight.any()


def test_dropout_is_before_the_last_layer():
    backbone, tuner = tuned('vit', type='Mona', width=5, dropout=0.5)
    delta = tuner.deltas['blocks/1#1']
    y = torch.randn(2, 17, 32, dtype=torch.float64)
    tuner.train()
    torch.manual_seed(0)
    first = delta(y)
    assert not torch.equal(first, delta(y))
    tuner.eval()
    assert torch.equal(delta(y), delta(y))


def test_a_network_without_attention_has_one_adapter_a_block():
    backbone = tiny('resnet').eval()
    tuner = TUNERS.build(dict(type='Mona', width=4))
    tuner.attach(backbone)
    assert [key for key in tuner.deltas if '#' in key] == []
    assert backbone(images(2)).isfinite().all()


class PatchFFN(Block):
    """A block whose FFN acts on the patches alone."""

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return torch.cat([x[:, :1], x[:, 1:] + self.mlp(self.norm2(x[:, 1:]))], 1)


def test_a_block_whose_ffn_sees_a_part_of_the_tokens_has_one_adapter():
    """The norm before the FFN does not see the sum of the block's input and its attention."""
    network = VisionTransformer(**VIT, num_classes=0, block_fn=PatchFFN)
    layout = find_layout(network, dict(mlp=r'blocks\.\d+\.mlp'), grid=(4, 4), num_prefix_tokens=1)
    backbone = Backbone(network, layout, Preprocessing(size=(32, 32)), dict(type='test', name='patch FFN'))
    tuner = TUNERS.build(dict(type='Mona', width=4))
    tuner.attach(backbone)
    assert list(tuner.deltas) == [f'blocks/{i}' for i in range(3)]
    assert all(type(delta).__name__ == 'Cognition' for delta in tuner.deltas.values())


def test_the_count_on_vit_b16(count_on_vit_b16):
    one = 2 * 64 * 768 + 64**2 + 88 * 64 + 5 * 768
    assert count_on_vit_b16(type='Mona') == 24 * one


def test_windows_are_refused():
    with pytest.raises(
        NoSiteError, match='Mona needs a module that gives the whole image, as tokens or as a map'
    ):
        TUNERS.build(dict(type='Mona', at='attn')).attach(tiny('swin'))
