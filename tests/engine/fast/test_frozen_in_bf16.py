"""Frozen weights stored in bf16: what autocast computes stays the same bit for bit, and the weights
come back.
"""

import copy

import pytest
import torch

from tests.contract.cases import CASES
from tests.contract.runs import LABELS, Run, differing, distance, gradients, in_autocast, run, trained, widest
from tests.engine.runs import failing, small
from tests.nets import images
from vet.engine.fast.frozen_in_bf16 import Norm, norm_inputs_kept_in, weights_stored_in
from vet.engine.learner import Learner

FORMING = {'Full', 'RLRR', 'GPS'}  # every weight trains, or is what the update is computed from
FAMILIES = ('vit', 'swin', 'convnext', 'resnet', 'torchvision-vit')


def stored(model) -> list[str]:
    return [name for name, p in model.backbone.network.named_parameters() if p.dtype == torch.bfloat16]


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.backbone.network.named_parameters()}


@pytest.mark.parametrize(
    'case, family',
    [
        pytest.param(
            case,
            family,
            id=f'{case}-{family}',
            marks=[] if family == 'vit' and case in widest().values() else pytest.mark.slow,
        )
        for family in FAMILIES
        for case in CASES
        if case.on is None or family in case.on
    ],
)
def test_loss_and_gradients_are_autocasts(case, family):
    if not isinstance(run(case, family), Run):
        pytest.skip('refuses')
    model = trained(case, family).train()
    loss, exact = in_autocast(copy.deepcopy(model))  # a norm's statistics move in training
    before = parameters(model)
    with weights_stored_in(torch.bfloat16, model):
        assert case.name in FORMING or stored(model)
        again, found = in_autocast(model)
    assert again == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in exact.items())
    assert not differing(before, parameters(model))


@pytest.mark.parametrize('family', ['vit', 'swin', 'convnext', 'clip'])
def test_norms_that_keep_half_give_gradients_as_near_to_float32_as_autocasts(family):
    model = trained(next(case for case in CASES if str(case) == 'LoRA-weight'), family)
    exact_loss, exact = gradients(model, images(6), LABELS)
    plain_loss, plain = in_autocast(model)
    with norm_inputs_kept_in(torch.bfloat16, model):
        loss, found = in_autocast(model)
    assert loss == plain_loss
    if family not in ('swin', 'convnext'):  # whose norms take bf16 anyway, but for a few of channels first
        assert any(not torch.equal(found[name], plain[name]) for name in found)

    assert distance(found, exact) < 1.1 * distance(plain, exact)
    assert not [
        module
        for module in model.backbone.network.modules()
        if isinstance(module, torch.nn.LayerNorm) and 'forward' in module.__dict__
    ]


def test_norms_and_what_an_update_reads_stay_exact():
    vit = trained(next(case for case in CASES if str(case) == 'LoRA'), 'vit')
    with weights_stored_in(torch.bfloat16, vit):
        layers = {
            name.removeprefix('blocks.0.')
            for name in stored(vit)
            if not name.startswith(('blocks.1', 'blocks.2'))
        }
        assert layers == {
            f'{layer}.{kind}'
            for kind in ('weight', 'bias')
            for layer in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2', 'patch_embed.proj')
        }
    dora = trained(next(case for case in CASES if case.label == 'dora-qv'), 'vit')
    with weights_stored_in(torch.bfloat16, dora):
        assert 'blocks.0.attn.qkv.weight' not in stored(dora) and 'blocks.0.attn.proj.weight' in stored(dora)


def test_norms_that_a_later_stage_trains_keep_float32():
    model = trained(next(case for case in CASES if case.name == 'NormTune'), 'vit')
    for parameter in model.trainable().values():
        parameter.requires_grad_(False)
    with norm_inputs_kept_in(torch.bfloat16, model):
        assert not [
            norm
            for norm in model.backbone.network.modules()
            if isinstance(norm, torch.nn.LayerNorm) and 'forward' in norm.__dict__
        ]


def test_a_checkpoint_that_does_not_fit_leaves_the_weights_exact(tmp_path, monkeypatch):
    options = {'train.precision': 'bf16', 'train.max_epochs': 2}
    first = small(tmp_path / 'run', **options)
    monkeypatch.setattr(Learner, 'step', failing(Learner.step, at=5))
    with pytest.raises(ZeroDivisionError):
        first.train()
    again = small(tmp_path / 'run', resume='auto', **options)
    monkeypatch.setattr(Learner, 'restore', failing(Learner.restore, at=4))
    with pytest.raises(ZeroDivisionError) as held:  # as a notebook holds it, and the learner with it
        again.train()
    assert held.traceback
    assert not stored(first.model) and not stored(again.model)


def test_an_error_within_brings_the_weights_back():
    model = trained(next(case for case in CASES if case.name == 'LoRA'), 'vit')
    with pytest.raises(ZeroDivisionError), weights_stored_in(torch.bfloat16, model):
        raise ZeroDivisionError
    assert not stored(model)


def test_a_second_derivative_through_a_norm_is_refused():
    """What it keeps has no history: it would be wrong."""
    x = torch.randn(2, 8, requires_grad=True)
    norm = torch.nn.LayerNorm(8).requires_grad_(False)
    y = Norm.apply(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, torch.bfloat16)
    assert torch.equal(y, norm(x))
    [gx] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gx.sum().backward()
