"""MLAE, Hydra and SNELL against their equations in float64, and their starts."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.nets import agrees, images, tiny
from tests.tuners.test_products import CONV, QKV, edited
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS

PLACES = pytest.mark.parametrize('family, site', [QKV, CONV])


@PLACES
def test_mlae_sums_experts(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='MLAE', rank=3, mask=0.5)
    tuner.eval()
    update = sum(delta.Lambda[i] * torch.outer(delta.B[:, i], delta.A[i]) for i in range(3))
    assert agrees(backbone, tuner, site, update)


def test_mlae_masks_whole_experts_in_training():
    _, tuner, delta, weight = edited(*QKV, type='MLAE', rank=6, mask=0.5)
    torch.manual_seed(0)
    mask = F.dropout(torch.ones(6, dtype=torch.float64), 0.5)
    torch.manual_seed(0)
    new, _ = delta(weight, None)
    assert set(mask.tolist()) == {0.0, 2.0}
    update = sum(mask[i] * delta.Lambda[i] * torch.outer(delta.B[:, i], delta.A[i]) for i in range(6))
    assert torch.allclose(new, weight + update)


def test_mlae_starts_at_zero_with_the_coefficient():
    backbone = tiny('vit')
    tuner = TUNERS.build(dict(type='MLAE', rank=4, coefficient=2.5))
    tuner.attach(backbone)
    for delta in tuner.deltas.values():
        assert not delta.B.any() and delta.Lambda.tolist() == [2.5] * 4
        assert delta.A.abs().max() <= 1 / math.sqrt(32)  # uniform, as nn.Linear


@PLACES
def test_hydra_merges_both_branches(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='Hydra', width=3, scale=0.4)
    beside, behind = delta.parallel, delta.sequential
    P, S = beside.up @ beside.down, behind.up @ behind.down
    assert torch.allclose(delta(weight, None)[0], weight + 0.4 * (P + S @ weight))
    layer = backbone.network.get_submodule(site)
    if layer.bias is None:
        assert beside.d is None and behind.u is None
        return
    x = torch.randn(2, 5, layer.in_features, dtype=torch.float64)
    f = F.linear(x, layer.weight, layer.bias)
    hidden = x @ beside.down.T + beside.d, f @ behind.down.T + behind.d
    branches = hidden[0] @ beside.up.T + beside.u + hidden[1] @ behind.up.T + behind.u
    assert torch.allclose(layer(x), f + 0.4 * branches)
    assert torch.allclose(F.linear(x, *delta(layer.weight, layer.bias)), f + 0.4 * branches)


def test_hydra_drops_hidden_values_in_training():
    backbone, tuner, delta, _ = edited(*QKV, type='Hydra', width=3, dropout=0.5)
    layer = backbone.network.get_submodule(QKV[1])
    x = torch.randn(2, 5, layer.in_features, dtype=torch.float64)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    f = F.linear(x, layer.weight, layer.bias)
    hidden = F.dropout(x @ delta.parallel.down.T + delta.parallel.d, 0.5)
    wanted = f + hidden @ delta.parallel.up.T + delta.parallel.u
    hidden = F.dropout(f @ delta.sequential.down.T + delta.sequential.d, 0.5)
    assert torch.allclose(found, wanted + hidden @ delta.sequential.up.T + delta.sequential.u)


def test_hydra_starts_with_zeros_behind():
    backbone = tiny('vit')
    tuner = TUNERS.build(dict(type='Hydra', width=4))
    tuner.attach(backbone)
    for delta in tuner.deltas.values():
        for branch in (delta.parallel, delta.sequential):
            assert not branch.up.any() and not branch.u.any() and not branch.d.any()
            bound = math.sqrt(6 / sum(branch.down.shape))  # Xavier-uniform
            assert 0.8 * bound < branch.down.abs().max() <= bound


@pytest.mark.parametrize('sparsity', [0, 0.75])
def test_snell_keeps_the_largest_differences_of_distances(sparsity):
    backbone, tuner, delta, weight = edited(*QKV, type='SNELL', rank=6, sparsity=sparsity)
    update = torch.zeros_like(weight)
    for part in range(3):
        a, b = delta.a[part].detach(), delta.b[part].detach()
        K = torch.zeros(32, 32, dtype=torch.float64)
        for o in range(32):
            for i in range(32):
                K[o, i] = 0.1 * ((a[0, i] - b[0, o]).norm() - (a[1, i] - b[1, o]).norm())
        if sparsity:
            least = torch.quantile(K.abs(), 0.75)
            K = torch.where(K.abs() > least, K * K.abs(), 0)
            assert (K == 0).double().mean().item() == pytest.approx(0.75, abs=0.01)
        update[32 * part : 32 * part + 32] = K
    assert agrees(backbone, tuner, QKV[1], update)


def test_the_kept_size_of_snell_is_a_constant_of_the_backward_pass():
    _, _, delta, weight = edited(*CONV, type='SNELL', rank=4, sparsity=0.5)
    gradient = torch.autograd.grad(delta(weight, None)[0].sum(), delta.a[0])[0]
    plus, minus = torch.cdist(delta.b[0], delta.a[0])
    K = 0.1 * (plus - minus)
    kept = (K.abs() > torch.quantile(K.detach().abs(), 0.5)) * K.detach().abs()
    assert torch.allclose(gradient, torch.autograd.grad((K * kept).sum(), delta.a[0])[0])


def test_snell_starts_near_the_identity():
    backbone = tiny('vit').eval()
    before = backbone(images(4))
    tuner = TUNERS.build(dict(type='SNELL', rank=8))
    tuner.attach(backbone)
    difference = (backbone(images(4)) - before).abs().max()
    assert 0 < difference < 1e-2 * before.abs().max()
    for delta in tuner.deltas.values():
        for points in (*delta.a, *delta.b):
            assert points.abs().max() <= 1 / math.sqrt(points.shape[1] * points.shape[2])


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(type='MLAE', rank=8), 295_008),
        (dict(type='Hydra', width=2), 239_712),
        pytest.param(dict(type='SNELL', rank=8), 1_327_104, marks=pytest.mark.slow),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


@pytest.mark.parametrize(
    'config, error, text',
    [
        (dict(type='SNELL', rank=3), UserError, 'rank is 3.*Give an even rank'),
        (dict(type='MLAE', rank=40), UserError, 'rank is 40, but the largest'),
        (dict(type='Hydra', dropout=0.1, at='weight'), NoSiteError, 'Hydra needs a Linear that is called'),
    ],
    ids=str,
)
def test_refusals(config, error, text):
    family = 'resnet' if config.get('at') == 'weight' else 'vit'
    with pytest.raises(error, match=text):
        TUNERS.build(config).attach(tiny(family))
