"""Which rows of a projection make queries, keys and values, checked against the tensors that the
attention itself computes.
"""

import pytest
import torch
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.tiny_vit import TinyVit
from torch import nn

from tests.contract.test_traps import torchvision_swin
from tests.nets import VIT, images, randomised, timm_net, tiny
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.errors import NoSiteError
from vet.registry import TUNERS

PLACES = 'attn.qkv'
TOUCHES = ['q', 'k', 'v', 'qv', 'qkv']


def tiny_vit() -> Backbone:
    """Its heads lie one after the other, each with its own queries, keys and values."""
    network = TinyVit(
        num_classes=0,
        embed_dims=(16, 16, 24, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        window_sizes=(4, 4, 4, 4),
        drop_path_rate=0.0,
    )
    return _plain('tiny_vit', network, 64)


def coatnet() -> Backbone:
    """Head by head too, by a convolution."""
    cfg = MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 1),
        block_type=('C', 'T'),
        stem_width=8,
        transformer_cfg=MaxxVitTransformerCfg(dim_head=8, use_nchw_attn=True, window_size=(4, 4)),
    )
    network = MaxxVit(cfg, img_size=64, num_classes=0)
    return _plain('coatnet', network, 64)


def _plain(name: str, network: nn.Module, size: int, roles: dict[str, str] | None = None) -> Backbone:
    return Backbone(
        network, find_layout(network, roles), Preprocessing(size=(size, size)), dict(type='test', name=name)
    )


NETS = {
    'vit': lambda: tiny('vit'),
    'swin': lambda: tiny('swin'),
    'torchvision swin': torchvision_swin,
    'beit': lambda: timm_net('beit_base_patch16_224', **VIT),  # reads the weight without calling the layer
    'eva': lambda: timm_net('eva02_tiny_patch14_224', **VIT),  # has a layer for each of q, k and v
    'tiny_vit': tiny_vit,
    'coatnet': coatnet,
    'levit': lambda: timm_net('levit_128s', 64, img_size=64),
    # one weight makes q, k, v and an FFN's input
    'parallel': lambda: timm_net('vit_base_patch16_xp_224', **VIT),
}
INTERLEAVED = ('tiny_vit', 'coatnet')


class Spied(torch.overrides.TorchFunctionMode):
    """Keeps q, k and v of the first attention, whoever multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.product: tuple = ()
        self.found: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.__name__
        if name == 'scaled_dot_product_attention':
            self.found += args[:3]
        elif name in ('matmul', '__matmul__', 'bmm'):
            if len(self.found) == 2:
                self.found.append(args[1] if args[0].shape[-1] == args[0].shape[-2] else args[0])
            self.product = args[:2]
        elif name == 'softmax' and not self.found:
            self.found += self.product
        return out


def attended(backbone: Backbone) -> dict[str, torch.Tensor]:
    """q, k and v of the first attention"""
    with torch.no_grad(), Spied() as spied:
        backbone(images(2, backbone.preprocessing.size[0]))
    return {part: tensor.clone() for part, tensor in zip('qkv', spied.found)}


@pytest.mark.parametrize('net', NETS)
def test_parts_change_the_queries_keys_or_values_they_name_and_no_others(net):
    backbone = randomised(NETS[net]()).eval()
    before = attended(backbone)
    for parts in TOUCHES:
        lora = TUNERS.build(dict(type='LoRA', rank=2, parts=parts, at=PLACES))
        lora.attach(backbone)
        with torch.no_grad():
            for delta in lora.deltas.values():
                delta.B.normal_()
        after = attended(backbone)
        assert ''.join(part for part in 'qkv' if not torch.equal(before[part], after[part])) == parts
        lora.detach()


@pytest.mark.parametrize('net', INTERLEAVED)
def test_each_part_of_a_projection_laid_out_by_heads_has_all_its_rows(net):
    backbone = NETS[net]()
    lora = TUNERS.build(dict(type='LoRA', rank=2, parts='v'))
    lora.attach(backbone)
    site = backbone.sites.find('attn.qkv')[0]
    rows = backbone.sites.parts[site.name]
    assert sorted(torch.cat([rows[part] for part in 'qkv']).tolist()) == list(range(len(site.weight)))
    assert all(isinstance(part, torch.Tensor) for part in rows.values())
    delta = next(iter(lora.deltas.values()))
    assert delta.B.shape == (len(rows['v']), 2) and 'rows_0' not in lora.state()


@pytest.mark.parametrize('net', sorted(NETS.keys() - {*INTERLEAVED, 'levit'}))
def test_rows_that_follow_each_other_are_a_slice(net):
    """A slice of a weight is a view, and rows by their numbers are a copy."""
    backbone = NETS[net]()
    TUNERS.build(dict(type='LoRA', rank=2, parts='v', at=PLACES)).attach(backbone)
    for site, rows in backbone.sites.parts.items():
        assert all(isinstance(numbers, slice) for numbers in rows.values()), site


@pytest.mark.parametrize('variant', ['plain', 'dora', 'pissa', 'vera'])
def test_variants_reload_and_merge_on_a_projection_laid_out_by_heads(variant):
    from tests.contract.runs import logits, with_head

    backbone = randomised(tiny_vit())
    model = with_head(backbone, [TUNERS.build(dict(type='LoRA', rank=2, parts='qv', variant=variant))])
    x = images(2, 64)
    frozen = logits(backbone, x)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tuned = logits(model, x)
    assert not torch.allclose(logits(backbone, x), frozen, atol=1e-4)
    again = with_head(
        randomised(tiny_vit()), [TUNERS.build(dict(type='LoRA', rank=2, parts='qv', variant=variant))]
    )
    again.load_trained_state(model.trained_state())
    assert torch.equal(logits(again, x), tuned)
    model.merge()
    assert torch.allclose(logits(model, x), tuned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['FacT', 'SNELL'])
def test_a_matrix_for_the_queries_changes_the_queries_of_all_heads(kind):
    backbone = randomised(tiny_vit()).eval()
    before = attended(backbone)
    tuner = TUNERS.build(dict(type=kind, rank=2, at='stages.1.blocks.0.attn.qkv'))
    tuner.attach(backbone)
    with torch.no_grad():
        if kind == 'FacT':
            shared = tuner.deltas['shared']
            shared.V.fill_(1.0), shared.P.zero_()
            shared.P[0] = 1.0
        else:
            delta = next(iter(tuner.deltas.values()))
            for points in (*list(delta.a)[1:], *list(delta.b)[1:]):
                points.zero_()
    after = attended(backbone)
    assert [part for part in 'qkv' if not torch.equal(before[part], after[part])] == ['q']


def test_ia3_scales_keys_and_values_of_each_head():
    backbone = randomised(tiny_vit()).eval()
    before = attended(backbone)
    tuner = TUNERS.build(dict(type='IA3', at='attn.qkv'))
    tuner.attach(backbone)
    with torch.no_grad():
        next(iter(tuner.deltas.values())).gamma.fill_(2.0)
    after = attended(backbone)
    assert torch.equal(before['q'], after['q']) and all(
        torch.allclose(2 * before[part], after[part]) for part in 'kv'
    )


def test_rlrr_has_a_right_scale_for_queries_keys_and_values_of_all_heads():
    backbone = tiny_vit()
    tuner = TUNERS.build(dict(type='RLRR', at='attn.qkv'))
    tuner.attach(backbone)
    name, delta = next(iter(tuner.deltas.items()))
    rows = backbone.sites.parts[name.replace('/', '.')]
    assert [delta.part[rows[part]].unique().tolist() for part in 'qkv'] == [[0], [1], [2]]


@pytest.mark.parametrize(
    'config', [dict(type='LoRA', rank=2, parts='v'), dict(type='IA3', at='attn.qkv')], ids=str
)
def test_an_attention_whose_parts_nothing_shows_is_refused_by_name(config):
    """CoaT multiplies keys and values first: no product of queries and keys meets a softmax."""
    backbone = timm_net(
        'coat_lite_tiny', 32, img_size=32, embed_dims=(16, 16, 16, 16), serial_depths=(1, 1, 1, 1)
    )
    with pytest.raises(
        NoSiteError, match=r"makes a query, a key or a value, but 'serial_blocks1\.0\.factoratt_crpe\.qkv'"
    ):
        TUNERS.build(config | dict(at='*.qkv')).attach(backbone)
