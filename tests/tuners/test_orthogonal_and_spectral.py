"""HRA, HiRA, OFT, BOFT, FourierFT, C3A, RandLoRA and GLoRA against their equations in float64, and their starts."""

from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

import vet
from tests.nets import agrees, images, tiny
from tests.tuners.test_products import CONV, QKV, edited
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS
from vet.tuners.oft import Rotation

PLACES = pytest.mark.parametrize('family, site', [QKV, CONV])


@PLACES
def test_hra_reflects_the_inputs(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='HRA', rank=4)
    chain = torch.eye(len(delta.u), dtype=torch.float64)
    for u in delta.u.T:
        chain = chain @ (torch.eye(len(u)) - 2 * torch.outer(u, u) / u.square().sum())
    assert torch.allclose(chain @ chain.T, torch.eye(len(chain), dtype=torch.float64), atol=1e-12)
    assert agrees(backbone, tuner, site, weight @ chain - weight)


@PLACES
def test_hira_multiplies_by_element(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='HiRA', rank=3)
    assert agrees(backbone, tuner, site, weight * (delta.B @ delta.A))


@PLACES
def test_oft_rotates_each_block_of_inputs(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='OFT', block=8)
    rotation = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for number, entries in enumerate(delta.q):
        Q = torch.zeros(8, 8, dtype=torch.float64)
        Q[*torch.triu_indices(8, 8, 1)] = entries
        Q, one, rows = Q - Q.T, torch.eye(8), slice(8 * number, 8 * number + 8)
        rotation[rows, rows] = (one - Q) @ torch.linalg.inv(one + Q)
    assert torch.allclose(rotation @ rotation.T, torch.eye(len(rotation), dtype=torch.float64), atol=1e-10)
    assert agrees(backbone, tuner, site, weight @ rotation.T - weight)


def test_the_series_of_oft_nears_the_inverse():
    torch.manual_seed(0)
    many, exact = Rotation(12, 6, 60).double(), Rotation(12, 6, None).double()
    with torch.no_grad():
        many.q.normal_(std=0.1)
        exact.q.copy_(-many.q)  # the series is that of (I + Q) (I - Q)^-1
    assert torch.allclose(many.rotations(), exact.rotations(), atol=1e-12)


@PLACES
def test_fourierft_adds_waves(family, site):
    """Each entry of the spectrum at (j, k) adds scale v cos(2 pi (a j / out + b k / n)) / (out n) at (a, b)."""
    backbone, tuner, delta, weight = edited(family, site, type='FourierFT', count=5, scale=40)
    out, inside = weight.shape
    a, b = torch.arange(out).double()[:, None], torch.arange(inside).double()
    update = torch.zeros_like(weight)
    for place, value in zip(delta.places.tolist(), delta.values):
        j, k = divmod(place, inside)
        update += 40 * value * torch.cos(2 * torch.pi * (a * j / out + b * k / inside)) / (out * inside)
    assert agrees(backbone, tuner, site, update)


@PLACES
def test_c3a_convolves_each_block(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='C3A', block=8)
    update = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            vector = delta.w[row // 8, column // 8]
            update[row, column] = vector[(column % 8 - row % 8) % 8] / weight.shape[1]
    assert agrees(backbone, tuner, site, update)


@PLACES
def test_randlora_scales_random_bases(family, site):
    backbone, tuner, delta, weight = edited(family, site, type='RandLoRA', rank=5, alpha=10)
    (out, inside), N = weight.shape, len(delta.gamma)
    A, B = delta.bases.A, delta.bases.B.flatten(1)  # (5, M) and (L, 5 N)
    assert A.std().item() == pytest.approx(1, abs=0.01) and B.std().item() == pytest.approx(1, abs=0.01)
    update = torch.zeros(max(out, inside), min(out, inside), dtype=torch.float64)
    for k in range(5):
        for b in range(N):
            update += 2 * delta.lambda_[k, b] * torch.outer(B[:, k * N + b], A[k] * delta.gamma[b])
    assert agrees(backbone, tuner, site, update if out >= inside else update.T)


def test_the_bases_of_randlora_have_full_rank():
    _, _, delta, weight = edited(*QKV, type='RandLoRA', rank=5)
    update = delta(weight, None)[0] - weight
    assert torch.linalg.matrix_rank(update) == 32


@PLACES
def test_boft_rotates_by_a_butterfly(family, site, monkeypatch):
    """PEFT computes several factors only with CUDA. Here its code runs with the product of its kernel."""
    layers = pytest.importorskip('peft.tuners.boft.layer')
    backbone, tuner, delta, weight = edited(family, site, type='BOFT', block=4, factors=3)
    block = delta.R.shape[-1]
    monkeypatch.setattr(layers, 'get_fbd_cuda', lambda: True)
    kernel = SimpleNamespace(apply=lambda x: torch.stack([torch.block_diag(*blocks) for blocks in x]))
    monkeypatch.setattr(layers, 'FastBlockDiag', kernel)
    config = peft.BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=3, target_modules=['0'])
    plain = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False).double())
    plain[0].weight.data = weight.clone()
    theirs = peft.get_peft_model(plain, config).double()
    theirs.base_model.model[0].boft_R['default'].data = delta.R.data
    theirs.base_model.model[0].boft_s['default'].data = delta.s.data
    x = torch.randn(3, weight.shape[1], dtype=torch.float64)
    W, _ = delta(weight, None)
    assert torch.allclose(theirs(x), x @ W.T, atol=1e-5)  # PEFT's identity matrix is float32
    assert agrees(backbone, tuner, site, W - weight)
    if weight.shape[0] >= weight.shape[1]:
        turned = torch.linalg.lstsq(weight, W / delta.s).solution
        assert torch.allclose(turned @ turned.T, torch.eye(len(turned), dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize(
    'forms', [('lora', 'lora', 'constant'), ('vector', 'vector', 'vector'), ('constant', 'none', 'none')]
)
def test_glora_scales_and_shifts(forms):
    weight, prompt, bias = forms
    backbone, tuner, delta, W = edited(*QKV, type='GLoRA', rank=3, weight=weight, prompt=prompt, bias=bias)
    b = backbone.network.get_parameter(f'{QKV[1]}.bias').detach()

    def term(one):
        return one.Xd @ one.Xu if one.form == 'lora' else getattr(one, 'X', torch.zeros(1, 1))

    A, B, C, D, E = map(term, (delta.A, delta.B, delta.C, delta.D, delta.E))
    shift = b * D.squeeze(1) + E.squeeze(1) + (W @ C.double().expand(32, 1)).squeeze(1)
    new, moved = delta(W, b)
    assert torch.allclose(new, W + W * A + B) and torch.allclose(moved, b + shift)
    x = torch.randn(2, 32, dtype=torch.float64)
    assert torch.allclose(backbone.network.get_submodule(QKV[1])(x), x @ new.T + moved)


def test_glora_without_forms_is_refused():
    with pytest.raises(NoSiteError, match='nothing to train'):
        TUNERS.build(dict(type='GLoRA', weight='none', prompt='none', bias='none')).attach(tiny('vit'))


def test_hra_starts_at_the_frozen_output_but_for_rounding():
    backbone = tiny('vit').eval().double()
    before = backbone(images(4).double())
    tuner = TUNERS.build(dict(type='HRA', rank=8))
    tuner.attach(backbone)
    tuner.double()
    assert torch.allclose(backbone(images(4).double()), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(type='HRA', rank=8), 12 * 8 * 768),
        (dict(type='HiRA', rank=32), 12 * 32 * (768 + 2304)),
        (dict(type='OFT', block=32), 12 * 768 * 31 // 2),
        (dict(type='FourierFT', count=3000), 12 * 3000),
        (dict(type='C3A', block=256), 12 * 768 * 2304 // 256),
        (dict(type='RandLoRA', rank=32), 12 * 24 * (32 + 768)),
        (dict(type='BOFT', block=8, factors=2), 12 * (2 * 768 * 8 + 2304)),
        (dict(type='GLoRA', rank=8), 12 * (16 * (2304 + 768) + 8 * 769 + 2)),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(**config) == number


@pytest.mark.parametrize('name, shape', [('OFT', (1, 27 * 26 // 2)), ('C3A', (4, 9, 3))])
def test_a_block_that_does_not_divide_becomes_a_divisor(name, shape):
    tuner = TUNERS.build(dict(type=name, block=32, at='0'))
    vet.tune(nn.Sequential(nn.Linear(27, 12)), tuner, example=torch.zeros(1, 27))
    assert [tuple(parameter.shape) for parameter in tuner.deltas.parameters()] == [shape]


def test_an_odd_number_of_reflections_is_refused():
    with pytest.raises(UserError, match="rank is 3 at 'blocks.0.attn.qkv'.*Give an even rank"):
        TUNERS.build(dict(type='HRA', rank=3)).attach(tiny('vit'))


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
@pytest.mark.parametrize(
    'entry', [dict(type='OFT', block=8), dict(type='BOFT', factors=2), dict(type='HRA')], ids=str
)
def test_a_tuner_that_solves_equations_takes_a_network_in_bf16(entry):
    torch.manual_seed(0)
    network, x = tiny('vit').network.eval(), images(4)
    tuned = vet.tune(network.bfloat16(), TUNERS.build(dict(entry)), example=x[:1].bfloat16())
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tuned(x.bfloat16()).float().square().sum().backward()
    for parameter in tuned.trainable().values():
        assert parameter.dtype == parameter.grad.dtype == torch.bfloat16 and parameter.grad.any()
    with torch.no_grad():
        unmerged = tuned(x.bfloat16()).float()
        tuned.merge()
        merged = tuned(x.bfloat16()).float()
        tuned.unmerge()
        exact = tuned.float()(x)
    for found in (unmerged, merged):
        assert (found - exact).norm() < 0.02 * exact.norm()
