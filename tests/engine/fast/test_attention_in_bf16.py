"""Attention by products: as near to the equation as torch's kernel, and in place of it only where it is
that equation.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.contract.cases import CASES
from tests.contract.runs import LABELS, Run, distance, gradients, in_autocast, run, trained, widest
from tests.engine.runs import small
from tests.nets import images
from vet.engine.fast import attention_in_bf16, door
from vet.engine.fast.attention_in_bf16 import Attention, AttentionByProducts

FAMILIES = ('vit', 'swin', 'convnext', 'clip', 'torchvision-vit')


def inputs(queries=7, keys=11, width=24, scale=1.0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(3, 2, n, width, generator=draw)).bfloat16()
        for n in (queries, keys, keys, queries)
    ]


def differentiated(attend, qkv, dy) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [each.detach().clone().requires_grad_() for each in qkv]
    y = attend(*leaves)
    return y.detach(), [each.double() for each in torch.autograd.grad(y, leaves, dy)]


def equation(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def error(found, exact) -> list[float]:
    return [float((one - other).norm() / other.norm()) for one, other in zip(found, exact)]


@pytest.mark.parametrize(
    'shape', [dict(), dict(queries=1), dict(queries=197, keys=197, width=64), dict(scale=3.0)], ids=str
)
def test_gradients_are_as_near_to_the_equations_as_those_of_torchs_kernel(shape):
    *qkv, dy = inputs(**shape)
    _, exact = differentiated(equation, [each.double() for each in qkv], dy.double())
    y_torch, of_torch = differentiated(F.scaled_dot_product_attention, qkv, dy)
    y, found = differentiated(Attention.apply, qkv, dy)
    assert torch.equal(y, y_torch)
    assert all(one < 1.1 * other + 1e-3 for one, other in zip(error(found, exact), error(of_torch, exact)))
    assert max(error(found, exact)) < 0.02


def test_a_second_derivative_is_refused():
    q, k, v, _ = inputs()
    (slope,) = torch.autograd.grad(
        Attention.apply(q.requires_grad_(), k, v).square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match='once_differentiable'):
        slope.sum().backward()


def test_products_are_float32s_again_after_it():
    before = torch.backends.mkldnn.matmul.fp32_precision
    *qkv, dy = inputs()
    differentiated(Attention.apply, qkv, dy)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    'options',
    [
        dict(attn_mask=torch.ones(7, 11, dtype=torch.bool)),
        dict(dropout_p=0.5),
        dict(scale=0.5),
        dict(is_causal=True),
        dict(wide=True),
        dict(in_float64=True),
        dict(in_float32=True),
        dict(without_gradient=True),
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_attentions_are_torchs(options, monkeypatch):
    q, k, v, _ = (each.float().requires_grad_() for each in inputs())
    monkeypatch.setattr(Attention, 'apply', None)  # it would raise
    options = dict(options)
    if options.pop('wide', False):
        k, v = k[:, :1], v[:, :1]
    if options.pop('in_float64', False):
        q, k, v = q.double(), k.double(), v.double()
    with (
        torch.autocast('cpu', torch.bfloat16, enabled=not options.pop('in_float32', False)),
        AttentionByProducts(),
        torch.set_grad_enabled(not options.pop('without_gradient', False)),
    ):
        torch.manual_seed(0)
        y = F.scaled_dot_product_attention(q, k, v, **options)
        assert y.shape == q.shape


@pytest.mark.parametrize('positional', [False, True])
@pytest.mark.parametrize('kind', ['bool', 'float'])
def test_an_attention_mask_acts(positional, kind):
    """With every trick on: what is masked has no say, and gets no gradient."""
    q, k, v, _ = (each.float().requires_grad_() for each in inputs())
    mask = torch.ones(7, 11, dtype=torch.bool).tril(3)
    given = mask if kind == 'bool' else torch.zeros(7, 11).masked_fill(~mask, -torch.inf)
    with torch.autocast('cpu', torch.bfloat16), AttentionByProducts():
        y = (
            F.scaled_dot_product_attention(q, k, v, given)
            if positional
            else F.scaled_dot_product_attention(q, k, v, attn_mask=given)
        )
    expected = torch.softmax((q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf), -1) @ v
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.03)
    (gradient,) = torch.autograd.grad(y[:, :, 0].sum(), v)
    assert gradient[:, :, 4:].abs().max() == 0 and gradient[:, :, :4].abs().min() > 0


@pytest.mark.parametrize(
    'case, family',
    [
        pytest.param(
            case,
            family,
            id=f'{case}-{family}',
            marks=[] if family == 'vit' and case is widest()[case.name] else pytest.mark.slow,
        )
        for family in FAMILIES
        for case in CASES
        if case.on is None or family in case.on
    ],
)
def test_every_tuners_gradients_stay_near_to_float32s(case, family):
    if not isinstance(run(case, family), Run):
        pytest.skip('refuses')
    model = trained(case, family).train()
    torch.manual_seed(0)
    _, exact = gradients(copy.deepcopy(model), images(6), LABELS)  # a norm's statistics move in training
    plain_loss, plain = in_autocast(copy.deepcopy(model))
    with AttentionByProducts():
        loss, found = in_autocast(model)
    assert loss == plain_loss
    # of tiny networks it scatters around 1.0, at most to 1.4
    assert distance(found, exact) <= 1.5 * distance(plain, exact)


@pytest.mark.slow
def test_training_in_bf16_takes_it_where_it_pays(tmp_path, monkeypatch):
    calls = []

    def counted(*qkv):
        calls.append(torch.is_grad_enabled())
        return F.scaled_dot_product_attention(*qkv)

    monkeypatch.setattr(attention_in_bf16.Attention, 'apply', counted)
    for is_faster, options, expected in (
        (True, {}, True),
        (True, {'train.shortcuts': False}, False),
        (True, {'train.precision': 'fp32'}, False),
        (False, {}, False),
    ):
        calls.clear()
        monkeypatch.setattr(door, 'is_faster_by_products', lambda device, value=is_faster: value)
        small(
            tmp_path / f'{len(list(tmp_path.iterdir()))}',
            **{'train.precision': 'bf16', 'train.max_epochs': 1, **options},
        ).train()
        assert bool(calls) is expected and all(calls)  # evaluation does without
