"""LoHa and LoKr against their equations in float64 and against PEFT given the same factors."""

import copy

import pytest
import torch
from torch import nn

from tests.nets import agrees, images, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS
from vet.tuners.loha import Hadamard

QKV, CONV, DEPTHWISE = (
    ('vit', 'blocks.1.attn.qkv'),
    ('resnet', 'layer2.0.conv1'),
    ('convnext', 'stages.1.blocks.0.conv_dw'),
)


def tuned(family: str, at: str, **config: object) -> tuple[Backbone, Tuner]:
    torch.manual_seed(0)
    backbone = tiny(family).eval()
    tuner = TUNERS.build(dict(at=at, **config))
    tuner.attach(backbone)
    for parameter in tuner.deltas.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone, tuner


def edited(family, site, **config):
    """The backbone in float64, the tuner with random numbers, its delta, and the weight as a matrix (out, n)."""
    backbone, tuner = tuned(family, site, **config)
    backbone.double(), tuner.double()
    weight = backbone.network.get_parameter(f'{site}.weight').detach().flatten(1)
    return backbone, tuner, tuner.deltas[site.replace('.', '/')], weight


@pytest.mark.parametrize('rank, is_split', [(4, True), (5, False)])
def test_loha_forms_its_update_where_the_two_products_would_be_large(rank, is_split):
    """Two products of rank r^2 take fewer operations while 2 r^2 <= min(out, in)."""
    assert Hadamard(torch.Size([32, 48]), rank, 1.0).splits(nn.Linear(48, 32)) is is_split


@pytest.mark.parametrize('rank', [2, 4, 7])  # 4: split into 16 pairs; 7: formed whole
@pytest.mark.parametrize('family, site', [QKV, CONV, DEPTHWISE])
def test_loha_is_the_elementwise_product_of_two_low_rank_matrices(family, site, rank):
    backbone, tuner = tuned(family, site, type='LoHa', rank=rank, alpha=3)
    backbone.double(), tuner.double()
    d = tuner.deltas[site.replace('.', '/')]
    update = torch.zeros(len(d.w1_a), d.w1_b.shape[1], dtype=torch.float64)
    for o in range(len(update)):
        update[o] = 3 / rank * (d.w1_a[o] @ d.w1_b) * (d.w2_a[o] @ d.w2_b)
    assert agrees(backbone, tuner, site, update)


@pytest.mark.parametrize('rank, factor', [(1, -1), (2, 4), (50, -1), (3, 5)])
@pytest.mark.parametrize('family, site', [QKV, CONV, DEPTHWISE])
def test_lokr_is_a_kronecker_product_block_by_block(family, site, rank, factor):
    backbone, tuner = tuned(family, site, type='LoKr', rank=rank, alpha=3, factor=factor)
    backbone.double(), tuner.double()
    d = tuner.deltas[site.replace('.', '/')]
    w2 = (d.w2_a if d.w2_b is None else d.w2_a @ d.w2_b).view(len(d.w2_a), -1, *d.kernel)
    assert (d.w2_b is None) == (rank >= max(w2.shape[:2]) / 2)
    rows = [
        torch.cat([3 / rank * d.w1[a, b] * w2 for b in range(d.w1.shape[1])], 1) for a in range(len(d.w1))
    ]
    assert agrees(backbone, tuner, site, torch.cat(rows))


@pytest.mark.parametrize(
    'size, factor, wanted',
    [
        (768, -1, (24, 32)),
        (128, 4, (4, 32)),
        (127, -1, (1, 127)),
        (12, 5, (3, 4)),
        (16, 8, (8, 2)),
        (1, -1, (1, 1)),
    ],
)
def test_sizes_are_factorised_as_peft_does(size, factor, wanted):
    from vet.tuners.lokr import factorized

    assert factorized(size, factor) == wanted
    import peft.tuners.lokr.layer as peft

    assert peft.factorization(size, factor) == wanted


THEIRS = {
    'LoHa': ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'),
    'LoKr': ('lokr_w1', 'lokr_w2_a', 'lokr_w2_b'),
}


@pytest.mark.parametrize('method', ['LoHa', 'LoKr'])
@pytest.mark.parametrize('family, target', [('vit', 'qkv'), ('resnet', 'conv2')])
def test_same_numbers_and_gradients_as_peft(method, family, target):
    import peft

    config = dict(LoHa=peft.LoHaConfig, LoKr=peft.LoKrConfig)[method]
    plain = tiny(family).eval()
    reference = peft.get_peft_model(
        copy.deepcopy(plain.network), config(r=2, alpha=6, target_modules=[target])
    ).eval()
    backbone, tuner = tuned(family, f'*.{target}', type=method, rank=2, alpha=6)
    pairs = []
    with torch.no_grad():
        for name, delta in tuner.deltas.items():
            layer = reference.base_model.model.get_submodule(name.replace('/', '.'))
            own = [name.partition('_')[2] for name in THEIRS[method]]
            for mine, their in zip(own, THEIRS[method]):
                if method == 'LoKr' and delta.w2_b is None:
                    mine, their = mine.replace('w2_b', 'w2_a'), 'lokr_w2' if 'w2' in their else their
                getattr(layer, their).default.copy_(
                    getattr(delta, mine).view_as(getattr(layer, their).default)
                )
                pairs.append((getattr(delta, mine), getattr(layer, their).default))
    ours, wanted = backbone(images(4)), reference(images(4))
    assert (ours - plain(images(4))).abs().max() > 1e-2
    assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    ours.square().sum().backward(), wanted.square().sum().backward()
    for mine, their in pairs:
        assert torch.allclose(
            mine.grad, their.grad.view_as(mine), rtol=1e-3, atol=1e-3 * their.grad.abs().max()
        )


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(type='LoHa', rank=4), 12 * 2 * 4 * (2304 + 768)),
        (dict(type='LoKr', rank=4), 12 * (48 * 24 + 4 * (48 + 32))),
        (dict(type='LoKr', rank=4, factor=8), 12 * (8 * 8 + 4 * (288 + 96))),
    ],
    ids=str,
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


@pytest.mark.parametrize(
    'config, error, text',
    [
        (
            dict(type='LoHa', at='norm'),
            NoSiteError,
            r"LoHa needs a weight matrix, but 'blocks\.0\.norm1' \(LayerNorm",
        ),
        (
            dict(type='LoKr', at='norm'),
            NoSiteError,
            r"LoKr needs a weight matrix, but 'blocks\.0\.norm1' \(LayerNorm",
        ),
        (dict(type='LoKr', factor=0), UserError, r'factor is 0; (allowed|it must be)'),
        (dict(type='LoHa', rank=[1, 2]), UserError, r'rank has 2 values'),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(config).attach(tiny('vit'))
