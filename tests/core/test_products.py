"""A layer and its low-rank updates as one: the same as the sum, and where it is computed."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import vet
from tests.nets import tiny
from vet.core import reweight
from vet.core.deltas import LowRank
from vet.core.products import FusedConv2d, FusedLinear, can_fuse, down
from vet.core.routes import ROUTES, choose_routes
from vet.registry import TUNERS

CONFIGS = [
    [dict(type='LoRA', rank=2)],
    [dict(type='LoRA', rank=2, variant='pissa')],
    [dict(type='LoRA', rank=2, variant='vera')],
    [dict(type='LoRA', rank=1, parts='qv'), dict(type='LoRA', rank=3, alpha=6)],
    [dict(type='FacT', rank=2)],
    [dict(type='LoHa', rank=1), dict(type='LoRA', rank=2)],
]


def layer(configs: list[dict]) -> tuple[nn.Linear, nn.ModuleList]:
    """A qkv projection (96, 32) under tuners that moved, in float64."""
    backbone = tiny('vit').double()
    torch.manual_seed(0)
    tuners = nn.ModuleList([TUNERS.build(config) for config in configs])
    for tuner in tuners:
        tuner.attach(backbone)
    tuners.double()
    with torch.no_grad():
        for parameter in tuners.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.network.blocks[0].attn.qkv, tuners


def computed(layer: nn.Module, tuners: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and all gradients, those of the gradient of x among them."""
    x = x.requires_grad_()
    y = layer(x)
    [gx] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    trained = [p for p in tuners.parameters() if p.requires_grad]
    found = torch.autograd.grad(y.sin().sum() + gx.square().sum(), [x, *trained], allow_unused=True)
    return [y, gx, *(gradient for gradient in found if gradient is not None)]


def taken(y: torch.Tensor) -> bool:
    return type((y if y._base is None else y._base).grad_fn).__name__ in (
        f'{kind.__name__}Backward' for kind in (FusedLinear, FusedConv2d)
    )


def forced(layer: nn.Module, route: str) -> None:
    choose_routes([('layer', layer)], {'layer': route})


@pytest.mark.parametrize('configs', CONFIGS, ids=str)
@pytest.mark.parametrize('route', ['split', 'plain'])
def test_it_is_the_sum(configs, route):
    x = torch.randn(3, 17, 32, dtype=torch.float64)
    qkv, tuners = layer(configs)
    one = computed(qkv, tuners, x)
    assert taken(one[0])
    forced(qkv, route)
    other = computed(qkv, tuners, x)
    assert (
        type(other[0]._base.grad_fn).__name__ == 'SplitLinearBackward'
        if route == 'split'
        else not taken(other[0])
    )
    assert len(one) == len(other) > 3
    for a, b in zip(one, other):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=1),
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, stride=2, bias=False),
        dict(kernel_size=(1, 3), dilation=2, padding=(0, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('route', ROUTES[1:])
def test_convolutions(options, layout, route):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **options).double().requires_grad_(False).to(memory_format=layout)
    deltas = nn.ModuleList(LowRank(conv.weight.shape, rank, scale=2.0) for rank in (1, 2)).double()
    for delta in deltas:
        nn.init.normal_(delta.B)
        reweight.Reweight(conv, 'weight', 'bias', delta).apply()
    x = torch.randn(3, 4, 12, 12, dtype=torch.float64).to(memory_format=layout)
    one = computed(conv, deltas, x)
    assert taken(one[0])
    forced(conv, route)
    other = computed(conv, deltas, x)
    assert taken(other[0]) == (route == 'convolved') and len(one) == len(other) == 7
    for a, b in zip(one, other):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    'options', [dict(padding='same'), dict(padding=1, padding_mode='circular'), dict(groups=2)], ids=str
)
def test_other_convolutions_form_the_sum(options):
    conv = nn.Conv2d(4, 6, 3, **options).requires_grad_(False)
    assert not can_fuse(conv, [LowRank(conv.weight.shape, 1)], torch.randn(3, 4, 12, 12))


def test_its_output_may_be_written_into():
    """As a ReLU in place does, which torch forbids of a view that a function of our own made."""
    qkv, tuners = layer([dict(type='LoRA', rank=2)])
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    y = qkv(x)
    assert taken(y)
    factors = list(tuners[0].deltas['blocks/0/attn/qkv'].parameters())
    expected = torch.autograd.grad(y.relu().square().sum(), factors)
    for one, other in zip(torch.autograd.grad(qkv(x).relu_().square().sum(), factors), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_a_transposed_input():
    qkv, _ = layer([dict(type='LoRA', rank=2)])
    x = torch.randn(32, 40, dtype=torch.float64, requires_grad=True)
    y, other = qkv(x.T), qkv(x.T.contiguous())
    assert taken(y) and torch.allclose(y, other)
    assert torch.allclose(*[torch.autograd.grad(out.sin().sum(), x)[0] for out in (y, other)])


@pytest.mark.parametrize(
    'change', ['few tokens', 'dropout', 'autocast', 'weight trains', 'dora', 'ssf', 'torch.func']
)
def test_else_the_sum_is_computed(change):
    config = dict(
        type='LoRA', rank=2, **dict(dropout=dict(dropout=0.5), dora=dict(variant='dora')).get(change, {})
    )
    qkv, tuners = layer([config, *([dict(type='SSF', at='attn.qkv')] if change == 'ssf' else [])])
    qkv.weight.requires_grad_(change == 'weight trains')
    x = torch.randn(5 if change == 'few tokens' else 40, 32, dtype=torch.float64)
    if change == 'autocast':
        tuners.float(), qkv.float()
        with torch.autocast('cpu', torch.bfloat16):
            assert not taken(qkv(x.float()))
    elif change == 'torch.func':
        torch.func.vmap(qkv)(x[None])  # would raise in a function of our own
    else:
        tuners.train()
        assert not taken(qkv(x))
        tuners.eval()
        assert taken(qkv(x)) == (change == 'dropout')


@pytest.mark.parametrize(
    'how',
    [
        dict(padding=(2, 1), padding_mode='reflect'),
        dict(padding=1, padding_mode='circular', stride=2),
        dict(padding='same', padding_mode='replicate', dilation=2),
        dict(padding='same'),
        dict(padding=(0, 1), stride=(1, 2)),
    ],
    ids=str,
)
def test_a_low_rank_part_of_a_convolution_is_padded_as_the_convolution_is(how):
    torch.manual_seed(0)
    module, A = nn.Conv2d(3, 2, (3, 5), bias=False, **how), torch.randn(2, 45)
    found = down(module, x := torch.randn(2, 3, 9, 9), A)
    with torch.no_grad():
        module.weight.copy_(A.view_as(module.weight))
    assert torch.equal(found, module(x))


def test_a_linear_under_lora_passes_few_functions_of_vet():
    """Small networks spend a good part of a step in Python. Lower the limit with the number."""
    qkv, tuners = layer([dict(type='LoRA', rank=2)])
    x = torch.randn(40, 32, dtype=torch.float64, requires_grad=True)
    tuners.train()
    assert taken(qkv(x))
    home = str(Path(vet.__file__).parent)
    entered: list[str] = []

    def note(frame, event, arg):
        if event == 'call' and frame.f_code.co_filename.startswith(home):
            entered.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        qkv(x)
    finally:
        sys.setprofile(before)
    assert '_reweighted' in entered and len(entered) <= 20, entered
