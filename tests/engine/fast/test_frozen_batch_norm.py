"""Frozen batch norms keep no input: outputs stay, gradients differ by rounding, and norms that train are left."""

import pytest
import timm
import torch
from torch import nn

from tests.contract.runs import with_head
from tests.engine.runs import ended, small
from tests.nets import tiny
from vet.engine.fast.frozen_batch_norm import FrozenBatchNorm, batch_norm_inputs_forgotten
from vet.registry import TUNERS

SHORT = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))  # a ResNet of one block in each stage


def kept(model, x) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What autograd keeps for the backward pass of `model(x)`, and the output."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        y = model(x)
    return found, y


def stored(maps: list[torch.Tensor]) -> int:
    """The bytes of the maps (2, …) among some tensors, each counted once."""
    return sum(one.nbytes for one in {one.data_ptr(): one for one in maps if len(one) == 2}.values())


def tuned(*configs, family='resnet'):
    model = with_head(tiny(family), [TUNERS.build(config) for config in configs])
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):  # statistics and scales that do something
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
    return model.train()


def gradients(model, y) -> dict[str, torch.Tensor]:
    trained = model.trainable()
    return dict(zip(trained, torch.autograd.grad(y.square().sum(), list(trained.values()))))


@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
def test_outputs_stay_and_the_inputs_are_not_kept(dtype):
    model, x = tuned(dict(type='LoRA', rank=2, at='weight')), torch.randn(4, 3, 32, 32)
    maps = {}
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.register_forward_pre_hook(lambda norm, args: maps.update({norm: args[0]}))
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype is not None):
        before, expected = kept(model, x)
        inputs = {map.data_ptr() for map in maps.values()}
        assert sum(tensor.data_ptr() in inputs for tensor in before) > 3
        plain = gradients(model, expected)
        maps.clear()
        with batch_norm_inputs_forgotten(model):
            after, y = kept(model, x)
            inputs = {map.data_ptr() for map in maps.values() if map.requires_grad}
            found = gradients(model, y)
    assert torch.equal(y, expected) and not any(tensor.data_ptr() in inputs for tensor in after)
    for name, gradient in plain.items():
        bound = (1e-4 if dtype is None else 0.05) * gradient.abs().max()
        assert (found[name] - gradient).abs().max() <= bound, name
    assert not any('forward' in module.__dict__ for module in maps)


def test_the_gradient_and_its_gradient_are_those_of_a_batch_norm():
    norm = nn.BatchNorm2d(3).double().eval().requires_grad_(False)
    with torch.no_grad():
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            values.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def frozen(x):
        return FrozenBatchNorm.apply(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)

    one, other = (torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (frozen, norm))
    torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(frozen, x) and torch.autograd.gradgradcheck(frozen, x)


@pytest.mark.parametrize('config', [dict(type='NormTune'), dict(type='SSF'), dict(type='Full')], ids=str)
def test_norms_that_train_or_are_edited_are_left(config):
    model, x = tuned(config), torch.randn(4, 3, 32, 32)
    y = model(x)
    expected = gradients(model, y)
    with batch_norm_inputs_forgotten(model):
        found = gradients(model, model(x))
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-5) for name, value in expected.items())


def test_a_norm_with_an_activation():
    network = timm.create_model('efficientnet_lite0').eval().requires_grad_(False)
    names = {type(module).__name__ for module in network.modules()}
    assert 'BatchNormAct2d' in names
    part = type('Part', (), {})()
    part.backbone = type('Backbone', (), dict(network=network))()
    model = type('Model', (), dict(tasks={None: part}, trainable=lambda self: {}))()
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    before, expected = kept(network, x)
    with batch_norm_inputs_forgotten(model):
        after, y = kept(network, x)
    assert torch.equal(y, expected)
    assert stored(after) < 0.8 * stored(before)
    torch.testing.assert_close(*[torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)])


def test_lean_false_leaves_the_norms(tmp_path, monkeypatch):
    used = []
    apply = FrozenBatchNorm.apply
    monkeypatch.setattr(FrozenBatchNorm, 'apply', lambda *args: used.append(1) or apply(*args))
    options = {
        'model.backbone': dict(
            type='timm', name='resnet18', pretrained=False, preprocessing=dict(size=32), kwargs=SHORT
        ),
        'model.tuners': [dict(type='LoRA', rank=2, at='weight')],
        'train.max_epochs': 1,
    }
    ended(small(tmp_path / 'off', **options, **{'train.shortcuts': False}))
    assert not used
    ended(small(tmp_path / 'on', **options))
    assert used
