"""rsLoRA, DoRA, PiSSA and VeRA against their equations in float64 and against PEFT."""

import copy

import pytest
import torch
from torch import nn

from tests.nets import images, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


def lora(**config: object) -> Tuner:
    return TUNERS.build(dict(type='LoRA', **config))


def tuned(family: str, site: str, **config: object) -> tuple[Backbone, nn.Module, nn.Module]:
    """A float64 backbone with LoRA, the module at `site`, and its delta with every parameter moved at
    random.
    """
    torch.manual_seed(0)
    backbone = tiny(family)
    tuner = lora(at=site, **config)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    delta = tuner.deltas[site.replace('.', '/')]
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    backbone.tuner = tuner  # kept alive
    return backbone, backbone.network.get_submodule(site), delta


QKV, CONV = 'blocks.1.attn.qkv', 'layer2.0.conv1'  # (96, 32) and (16, 8, 3, 3)


def test_rslora_divides_alpha_by_the_root_of_the_rank():
    _, qkv, delta = tuned('vit', QKV, variant='rslora', rank=4, alpha=6)
    x = torch.randn(5, 32, dtype=torch.float64)
    expected = x @ qkv.weight.T + qkv.bias + 6 / 4**0.5 * (x @ delta.A.T @ delta.B.T)
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


def test_dora_is_a_magnitude_times_a_direction_row_by_row():
    _, qkv, delta = tuned('vit', QKV, variant='dora', rank=4, alpha=6)
    x = torch.randn(5, 32, dtype=torch.float64)
    expected = torch.empty(5, 96, dtype=torch.float64)
    for row in range(96):
        v = qkv.weight[row] + 1.5 * delta.B[row] @ delta.A
        expected[:, row] = delta.m[row] * (x @ v) / v.square().sum().sqrt() + qkv.bias[row]
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


def test_dora_of_parts_leaves_the_other_rows():
    _, qkv, delta = tuned('vit', QKV, variant='dora', rank=4, parts='v')
    x = torch.randn(5, 32, dtype=torch.float64)
    V = qkv.weight[64:] + delta.B @ delta.A
    expected = x @ qkv.weight.T + qkv.bias
    expected[:, 64:] = x @ (delta.m / V.norm(dim=1) * V.T) + qkv.bias[64:]
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


def test_dora_of_a_convolution_norms_whole_kernels():
    _, conv, delta = tuned('resnet', CONV, variant='dora', rank=2)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    V = conv.weight + (delta.B @ delta.A).view_as(conv.weight)
    W = delta.m[:, None, None, None] * V / V.square().sum((1, 2, 3), keepdim=True).sqrt()
    expected = nn.functional.conv2d(x, W, stride=conv.stride, padding=conv.padding)
    assert torch.allclose(conv(x), expected, rtol=0, atol=1e-8)


def test_dora_has_the_gradient_of_a_constant_norm():
    _, qkv, delta = tuned('vit', QKV, variant='dora', rank=4)
    x = torch.randn(5, 32, dtype=torch.float64)
    mine = torch.autograd.grad(qkv(x).square().sum(), [delta.m, delta.A, delta.B])
    V = qkv.weight + delta.B @ delta.A
    y = x @ (delta.m[:, None] * V / V.detach().norm(dim=1, keepdim=True)).T + qkv.bias
    wanted = torch.autograd.grad(y.square().sum(), [delta.m, delta.A, delta.B])
    assert all(torch.allclose(a, b) for a, b in zip(mine, wanted))


def test_dora_survives_a_pruned_row():
    backbone = tiny('vit')
    with torch.no_grad():
        backbone.network.blocks[0].attn.qkv.weight[7] = 0
    frozen = backbone.eval()(images(2))
    lora(variant='dora', rank=2).attach(backbone)
    assert torch.equal(backbone(images(2)), frozen)


@pytest.mark.parametrize('site, parts', [(QKV, None), (QKV, 'qv'), (CONV, None)])
def test_pissa_starts_at_the_principal_part_of_the_weight(site, parts):
    backbone = tiny('vit' if site == QKV else 'resnet')
    tuner = lora(variant='pissa', rank=3, alpha=6, parts=parts, at=site)
    tuner.attach(backbone)
    W = backbone.network.get_submodule(site).weight.flatten(1)
    delta = tuner.deltas[site.replace('.', '/')]
    update = delta.full_B() @ delta.A
    for rows in delta.rows:
        U, S, V = torch.linalg.svd(W[rows])
        assert torch.allclose(update[rows], U[:, :3] @ torch.diag(S[:3]) @ V[:3], atol=1e-4)
        assert torch.linalg.matrix_norm(W[rows] - update[rows], 2).item() == pytest.approx(
            S[3].item(), rel=1e-3
        )


def test_pissa_is_the_residual_plus_the_trained_pair():
    _, qkv, delta = tuned('vit', QKV, variant='pissa', rank=3, alpha=6)
    x = torch.randn(5, 32, dtype=torch.float64)
    residual = qkv.weight - 2 * delta.B0 @ delta.A0
    expected = x @ (residual + 2 * delta.B @ delta.A).T + qkv.bias
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)
    assert not torch.equal(delta.A, delta.A0)
    weight, bias = delta(qkv.weight, qkv.bias)
    assert torch.allclose(x @ weight.T + bias, expected, rtol=0, atol=1e-8)


def test_pissa_starts_at_the_identity_however_large_the_principal_part_is():
    backbone = tiny('vit').eval()
    with torch.no_grad():
        backbone.network.blocks[0].attn.qkv.weight[5] *= 1e4  # y + p - p would round y away
    frozen = backbone(images(2))
    lora(variant='pissa', rank=3, alpha=6).attach(backbone)
    assert torch.equal(backbone(images(2)), frozen)


def test_pissa_drops_out_the_input_of_the_trained_pair_alone():
    _, qkv, delta = tuned('vit', QKV, variant='pissa', rank=3, alpha=6, dropout=0.5)
    x = torch.randn(5, 32, dtype=torch.float64)
    delta.train()
    torch.manual_seed(0)
    found = qkv(x)
    torch.manual_seed(0)
    dropped = nn.functional.dropout(x, 0.5)
    expected = x @ (qkv.weight - 2 * delta.B0 @ delta.A0).T + 2 * dropped @ delta.A.T @ delta.B.T + qkv.bias
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('parts', [None, 'kv'])
def test_vera_scales_frozen_projections(parts):
    _, qkv, delta = tuned('vit', QKV, variant='vera', rank=6, parts=parts)
    assert len(set(delta.names)) == 1
    A, B = (getattr(delta.shared, name) for name in delta.names[0])
    assert A.shape == (6, 32) and B.shape == (32 if parts else 96, 6)
    x = torch.randn(5, 32, dtype=torch.float64)
    expected = x @ qkv.weight.T + qkv.bias
    for i, rows in enumerate([slice(32, 64), slice(64, 96)] if parts else [slice(0, 96)]):
        b, d = delta.b.chunk(len(delta.rows))[i], delta.d.chunk(len(delta.rows))[i]
        expected[:, rows] += x @ A.T @ torch.diag(d) @ B.T @ torch.diag(b)
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


def test_vera_shares_its_projections_and_draws_them_again_bit_for_bit():
    def attached(seed: int) -> Tuner:
        torch.manual_seed(torch.seed() % 1000)
        tuner = lora(variant='vera', rank=6, seed=seed, at=['attn.qkv', 'mlp.fc1'])
        tuner.attach(tiny('vit'))
        return tuner

    one, again, other = attached(5), attached(5), attached(6)
    frozen = {name: buffer for name, buffer in one.deltas['shared'].named_buffers()}
    assert len(frozen) == 4 and sum(name.startswith('A') for name in frozen) == 2
    for name, buffer in again.deltas['shared'].named_buffers():
        assert torch.equal(buffer, frozen[name])
    assert not any(
        torch.equal(buffer, frozen[name]) for name, buffer in other.deltas['shared'].named_buffers()
    )
    assert {name.rpartition('.')[2] for name in one.state()} == {'b', 'd'}
    assert all(
        (delta.d == 0.1).all() and not delta.b.any() for name, delta in one.deltas.items() if name != 'shared'
    )


@pytest.mark.parametrize('options, ours', [(dict(use_rslora=True), 'rslora'), (dict(use_dora=True), 'dora')])
def test_same_numbers_and_gradients_as_peft(options, ours):
    import peft

    backbone = tiny('vit').eval()
    names = dict(r=4, lora_alpha=8, target_modules=['qkv'])
    reference = peft.get_peft_model(
        copy.deepcopy(backbone.network), peft.LoraConfig(**names, **options)
    ).eval()
    tuner = lora(variant=ours, **names)
    tuner.attach(backbone)
    torch.manual_seed(0)
    theirs = {}
    with torch.no_grad():
        for name, delta in tuner.deltas.items():
            layer = reference.base_model.model.get_submodule(name.replace('/', '.'))
            delta.B.normal_(0, 0.1)
            layer.lora_A.default.weight.copy_(delta.A)
            layer.lora_B.default.weight.copy_(delta.B)
            theirs[name] = [(delta.A, layer.lora_A.default.weight), (delta.B, layer.lora_B.default.weight)]
            if ours == 'dora':
                theirs[name].append((delta.m, layer.lora_magnitude_vector.default.weight))
    mine, wanted = backbone(images(4)), reference(images(4))
    assert torch.allclose(mine, wanted, rtol=0, atol=1e-5)
    mine.square().sum().backward(), wanted.square().sum().backward()
    for pairs in theirs.values():
        for own, their in pairs:
            assert torch.allclose(own, their, atol=1e-6)
            assert torch.allclose(own.grad, their.grad, rtol=1e-3, atol=1e-4 * their.grad.abs().max())


def test_peft_names_mean_the_same():
    backbone, again = tiny('vit'), tiny('vit')
    torch.manual_seed(0)
    tuner = lora(r=3, lora_alpha=6, lora_dropout=0.5, target_modules=['qkv', 'fc1'])
    tuner.attach(backbone)
    torch.manual_seed(0)
    own = lora(rank=3, alpha=6, dropout=0.5, at=['attn.qkv', 'mlp.fc1'])
    own.attach(again)
    assert tuner.deltas.keys() == own.deltas.keys()
    assert all((d.rank, d.scale, d.dropout) == (3, 2.0, 0.5) for d in tuner.deltas.values())


# Counts and refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config, number',
    [
        (dict(rank=8, parts='qv', variant='rslora'), 294_912),
        (dict(rank=8, parts='qv', variant='dora'), 313_344),
        (dict(rank=256, parts='qv', variant='vera'), 24_576),
    ],
    ids=str,
)
def test_published_counts_on_vit_b16(count_on_vit_b16, config, number):
    assert count_on_vit_b16(type='LoRA', **config) == number


@pytest.mark.parametrize(
    'config, error, text',
    [
        (dict(variant='dorra'), UnknownNameError, r"variant of tuner 'LoRA' 'dorra'\. Did you mean 'dora'"),
        (
            dict(variant='dora', dropout=0.1),
            UserError,
            r"dropout is 0\.1, but the variant 'dora' has no dropout",
        ),
        (
            dict(variant='pissa', rank=33),
            UserError,
            r'rank is 33, but the largest of the 3 weights at .* has 32',
        ),
        (dict(variant='pissa', rank=2, alpha=0), UserError, r'alpha is 0; it must be above 0'),
        (dict(target_modules='qkv'), UserError, r"target_modules is 'qkv'; (allowed|it must be): a list"),
        (dict(target_modules=['qvk']), UnknownNameError, r"'\*\.qvk'"),
        (dict(variant='dora', at='norm'), NoSiteError, r"a weight matrix, but 'blocks\.0\.norm1'"),
    ],
    ids=str,
)
def test_refusal_says_what_was_given_and_what_is_allowed(config, error, text):
    backbone = tiny('vit')
    with pytest.raises(error, match='(?s)' + text):
        lora(**config).attach(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())
