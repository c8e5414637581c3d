"""Updates that split off: a Linear keeps its input and a few columns, and neither makes W + B A nor the gradient of W."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nets import tiny
from vet.registry import TUNERS

SPLIT = [dict(type='LoRA', rank=2), dict(type='LoRA', rank=2, variant='rslora'), dict(type='LoRA', rank=2, variant='pissa'),
         dict(type='LoRA', rank=2, variant='vera'), dict(type='LoRA', rank=1, parts='qv'), dict(type='FacT', rank=2),
         dict(type='FacT', rank=2, variant='tt'), dict(type='LoHa', rank=1), dict(type='LoKr', rank=1),
         dict(type='RepAdapter', width=2), dict(type='ARC', width=2)]
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
    qkv.__dict__['owner'] = tuner           # kept alive
    if not split:
        qkv._reweights[0].delta.splits = lambda module: False
    return qkv


def saved_bytes(qkv: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps for the backward pass: each storage once, those of parameters aside."""
    frozen = {p.untyped_storage().data_ptr() for p in [*qkv.parameters(), *qkv.owner.parameters(), *qkv.owner.buffers()]}
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
