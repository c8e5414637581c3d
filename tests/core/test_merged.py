"""Low-rank updates of a Linear as one product: the same as the sum, and where it is computed."""

import pytest
import torch
from torch import nn

from tests.nets import tiny
from vet.core import edits
from vet.core.merged import MergedLinear
from vet.registry import TUNERS

CONFIGS = [[dict(type='LoRA', rank=2)], [dict(type='LoRA', rank=2, variant='pissa')], [dict(type='LoRA', rank=2, variant='vera')],
           [dict(type='LoRA', rank=1, parts='qv'), dict(type='LoRA', rank=3, alpha=6)], [dict(type='FacT', rank=2)],
           [dict(type='LoHa', rank=1), dict(type='LoRA', rank=2)]]


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


def computed(qkv: nn.Linear, tuners: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and all gradients, those of the gradient of x among them."""
    x = x.requires_grad_()
    y = qkv(x)
    [gx] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    trained = [p for p in tuners.parameters() if p.requires_grad]
    found = torch.autograd.grad(y.sin().sum() + gx.square().sum(), [x, *trained], allow_unused=True)
    return [y, gx, *(gradient for gradient in found if gradient is not None)]


def taken(y: torch.Tensor) -> bool:
    return type(y.grad_fn).__name__ == f'{MergedLinear.__name__}Backward'


@pytest.mark.parametrize('configs', CONFIGS, ids=str)
def test_it_is_the_sum(configs, monkeypatch):
    x = torch.randn(3, 17, 32, dtype=torch.float64)
    qkv, tuners = layer(configs)
    one = computed(qkv, tuners, x)
    assert taken(one[0])
    monkeypatch.setattr(edits, 'merges', lambda *_: False)
    other = computed(qkv, tuners, x)
    assert not taken(other[0]) and len(one) == len(other) > 3
    for a, b in zip(one, other):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_a_transposed_input():
    qkv, _ = layer([dict(type='LoRA', rank=2)])
    x = torch.randn(32, 40, dtype=torch.float64, requires_grad=True)
    y, other = qkv(x.T), qkv(x.T.contiguous())
    assert taken(y) and torch.allclose(y, other)
    assert torch.allclose(*[torch.autograd.grad(out.sin().sum(), x)[0] for out in (y, other)])


@pytest.mark.parametrize('change', ['few tokens', 'dropout', 'autocast', 'weight trains', 'dora', 'ssf', 'torch.func'])
def test_else_the_sum_is_computed(change):
    config = dict(type='LoRA', rank=2, **dict(dropout=dict(dropout=0.5), dora=dict(variant='dora')).get(change, {}))
    qkv, tuners = layer([config, *([dict(type='SSF', at='attn.qkv')] if change == 'ssf' else [])])
    qkv.weight.requires_grad_(change == 'weight trains')
    x = torch.randn(5 if change == 'few tokens' else 40, 32, dtype=torch.float64)
    if change == 'autocast':
        tuners.float(), qkv.float()
        with torch.autocast('cpu', torch.bfloat16):
            assert not taken(qkv(x.float()))
    elif change == 'torch.func':
        torch.func.vmap(qkv)(x[None])       # would raise in a function of our own
    else:
        tuners.train()
        assert not taken(qkv(x))
        tuners.eval()
        assert taken(qkv(x)) == (change == 'dropout')
