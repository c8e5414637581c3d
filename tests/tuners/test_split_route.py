"""Updates that split off: a Linear keeps its input and a few columns, and neither makes W + B A nor the
gradient of W.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nets import tiny
from vet.core.products import AddProduct, add_product, through
from vet.core.routes import choose_routes
from vet.registry import TUNERS
from vet.tuners.lokr import KroneckerLinear

SPLIT = [
    dict(type='LoRA', rank=2),
    dict(type='LoRA', rank=2, variant='rslora'),
    dict(type='LoRA', rank=2, variant='pissa'),
    dict(type='LoRA', rank=2, variant='vera'),
    dict(type='LoRA', rank=1, parts='qv'),
    dict(type='FacT', rank=2),
    dict(type='FacT', rank=2, variant='tt'),
    dict(type='LoHa', rank=1),
    dict(type='LoKr', rank=1),
    dict(type='RepAdapter', width=2),
    dict(type='ARC', width=2),
    dict(type='HRA', rank=2),
    dict(type='OFT', block=8),
    dict(type='IA3', at='attn.qkv'),
]
WEIGHT = 96 * 32


def layer(config: dict, split: bool) -> nn.Module:
    """A qkv projection (96, 32) under a tuner; without `split`, as it would be were the weight formed."""
    backbone = tiny('vit')
    torch.manual_seed(0)
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    with torch.no_grad():
        for parameter in tuner.deltas.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    qkv = backbone.network.blocks[0].attn.qkv
    qkv.__dict__['owner'] = tuner  # kept alive
    if not split:
        qkv._reweighted.edits[0].delta.splits = lambda module: False
    return qkv


def saved_bytes(qkv: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps for the backward pass: each storage once, those of parameters aside."""
    frozen = {
        p.untyped_storage().data_ptr()
        for p in [*qkv.parameters(), *qkv.owner.parameters(), *qkv.owner.buffers()]
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = qkv(x)
    assert y.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in frozen)


@pytest.mark.parametrize('config', SPLIT, ids=str)
def test_split_layer_saves_its_input_and_a_few_columns(config):
    x = torch.randn(7, 32, requires_grad=True)
    split, whole = (saved_bytes(layer(config, split), x) for split in (True, False))
    assert split < 4 * WEIGHT / 2
    assert whole >= 4 * WEIGHT


class Made(TorchDispatchMode):
    """Counts the tensors of W's size that operations make (views of others aside)."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_view = any(alias.alias_info is not None for alias in function._schema.returns)
        self.count += not is_view and isinstance(out, torch.Tensor) and out.numel() == WEIGHT
        return out


@pytest.mark.parametrize('config', SPLIT, ids=str)
def test_split_layer_makes_no_tensor_of_the_weights_size_and_has_the_same_gradients(config):
    found = {}
    for split in (True, False):
        qkv, x = layer(config, split), torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
        with Made() as seen:
            qkv(x).square().sum().backward()
        assert (seen.count == 0) == split
        found[split] = {name: p.grad for name, p in qkv.owner.deltas.named_parameters() if p.grad is not None}
    assert found[True].keys() == found[False].keys() and found[True]
    for name, gradient in found[True].items():
        assert torch.allclose(gradient, found[False][name], rtol=1e-3, atol=1e-4 * gradient.abs().max()), name


@pytest.mark.parametrize('route', ['split', 'convolved'])
@pytest.mark.parametrize(
    'host, shape',
    [
        (nn.Linear(5, 7), (5,)),
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), (2, 3, 5, 5)),
    ],
    ids=['vector', 'tokens', 'map'],
)
def test_gradients_and_their_gradients(host, shape, route):
    choose_routes([('', host)], {'': route})
    host = host.double().requires_grad_(False).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    x, A, B = (
        torch.randn(*size, dtype=torch.float64)
        for size in (shape, (2, host.weight[0].numel()), (len(host.weight), 2))
    )
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    given = tuple(tensor.requires_grad_() for tensor in (x, A, B))

    def added(x, A, B):
        return add_product(host, x, host(x), A, B)

    torch.testing.assert_close(added(*given), host(x) + through(host, x, A, B))
    assert torch.autograd.gradcheck(added, given) and torch.autograd.gradgradcheck(added, given)


def test_torch_func_and_jit_take_the_plain_sum():
    qkv, x = layer(dict(type='LoRA', rank=2), True), torch.randn(4, 32)
    assert torch.allclose(torch.vmap(qkv)(x), qkv(x), atol=1e-6)
    assert torch.allclose(torch.func.jvp(qkv, (x,), (x,))[1], qkv(x) - qkv.bias, atol=1e-5)
    qkv.owner.requires_grad_(False)
    assert torch.allclose(torch.jit.trace(lambda x: qkv(x), x)(2 * x), qkv(2 * x), atol=1e-6)


def test_a_product_written_into_a_view_has_the_gradients_of_a_sum():
    """A Linear's output is a view in some versions of torch."""
    draw = torch.Generator().manual_seed(0)
    x, W, h, B = (
        torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        for shape in ((10, 4), (6, 4), (2, 5, 3), (6, 3))
    )

    def differentiated(product):
        y = product((x @ W.T).view(2, 5, 6))
        return y, *torch.autograd.grad(y.square().sum(), (x, W, h, B))

    for found, expected in zip(
        differentiated(lambda y: AddProduct.apply(y, h, B, -1, False)), differentiated(lambda y: y + h @ B.T)
    ):
        torch.testing.assert_close(found, expected)


def test_gradients_of_a_kronecker_product_and_their_gradients():
    torch.manual_seed(0)
    given = tuple(
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((5, 3, 4), (2, 3), (6, 4))
    )
    x, w1, w2 = given
    found = KroneckerLinear.apply(*given).flatten(1)
    torch.testing.assert_close(found, x.flatten(1) @ torch.kron(w1, w2).T)
    assert torch.autograd.gradcheck(KroneckerLinear.apply, given)
    assert torch.autograd.gradgradcheck(KroneckerLinear.apply, given)


def test_lokr_keeps_nothing_but_the_input():
    x = torch.randn(7, 32, requires_grad=True)
    lokr = layer(dict(type='LoKr', rank=1), split=True)
    small = sum(p.numel() for p in lokr.owner.parameters()) + 96 + 32
    assert saved_bytes(lokr, x) <= 4 * (x.numel() + small)
