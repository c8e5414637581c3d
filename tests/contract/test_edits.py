"""What attaching, training and detaching do to the frozen backbone: nothing but what the tuner owns."""

import copy

import pytest
import torch

from tests.contract.runs import (
    LABELS,
    Refusal,
    differing,
    gradients,
    leftovers,
    logits,
    run,
    snapshot,
    trained,
)
from tests.nets import images, tiny
from vet.errors import UserError


def thawed_keys(model) -> set[str]:
    return {name.partition('.thawed.')[2] for name in model.trained_state() if '.thawed.' in name}


def test_state_dict_keys_are_the_backbones_own(ran):
    assert list(ran.model.backbone.network.state_dict()) == list(ran.frozen)


def test_identity_at_start_is_exact(ran):
    starts_equal = torch.equal(ran.first_features, ran.frozen_features)
    assert starts_equal == ran.model.tuners[0].identity_at_start


def test_everything_frozen_is_bit_equal_after_training(ran):
    changed = set(differing(snapshot(ran.model.backbone.network), ran.frozen))
    assert changed <= thawed_keys(ran.model)


def test_three_steps_lower_the_loss(ran):
    assert ran.losses[-1] < ran.losses[0]


def test_every_trainable_tensor_moves_the_loss(ran):
    silent = [name for name, gradient in ran.last_gradients.items() if not gradient.abs().sum() > 0]
    assert not silent


def test_every_delta_has_a_gradient_from_the_first_step(ran):
    by_delta: dict[str, float] = {}
    for key, delta in ran.model.tuners[0].deltas.items():
        if key == 'shared':  # ARC's projections wait for a scale that starts at zero
            continue
        for name, _ in delta.named_parameters():
            gradient = ran.first_gradients[f'tuners.0.deltas.{key.replace("/", ".")}.{name}']
            by_delta[key] = by_delta.get(key, 0) + gradient.abs().sum().item()
    assert all(by_delta.values())


def test_number_of_parameters_is_the_closed_formula(ran, case, family):
    if case.count is None:
        pytest.skip('no formula was given')
    count = ran.model.count()
    assert count['tuners'] == case.count(tiny(family))
    assert count['trainable'] == sum(p.numel() for p in ran.model.trainable().values())


def test_only_the_tuners_parameters_and_the_heads_require_gradients(ran):
    wanted = {id(p) for p in ran.model.trainable().values()}
    assert {id(p) for p in ran.model.parameters() if p.requires_grad} == wanted


def test_detach_restores_the_network_bit_for_bit(ran, case, family):
    model = trained(case, family)
    model.tuners[0].detach()
    network = model.backbone.network
    assert not differing(snapshot(network), ran.frozen)
    assert not leftovers(network)
    assert torch.equal(logits(model.backbone), ran.frozen_features)


def test_detach_gives_back_the_very_same_tensors(case, family):
    backbone = tiny(family)
    tensors = {name: id(value) for name, value in [*backbone.named_parameters(), *backbone.named_buffers()]}
    attributes = {name: set(module.__dict__) for name, module in backbone.named_modules()}
    tuner = case.make(backbone)
    try:
        tuner.attach(backbone)
    except UserError as error:
        if case.on is None:
            pytest.skip(f'refuses: {error}')
        raise
    tuner.detach()
    assert {
        name: id(value) for name, value in [*backbone.named_parameters(), *backbone.named_buffers()]
    } == tensors
    assert {name: set(module.__dict__) for name, module in backbone.named_modules()} == attributes
    assert not list(tuner.trainable())


def test_attaching_again_after_detach_starts_afresh(case, family, ran):
    model = trained(case, family)
    tuner, backbone = model.tuners[0], model.backbone
    tuner.detach()
    tuner.attach(backbone)
    assert torch.equal(logits(backbone), ran.frozen_features) == tuner.identity_at_start
    assert model.count()['tuners'] == ran.model.count()['tuners']


def test_deepcopy_computes_the_same_and_is_independent(ran, case, family):
    copied = copy.deepcopy(ran.model)
    before = logits(ran.model)
    assert torch.equal(logits(copied), before)
    with torch.no_grad():
        for parameter in copied.trainable().values():
            parameter.add_(1.0)
    assert not torch.equal(logits(copied), before)
    assert torch.equal(logits(ran.model), before)


def test_deepcopy_detaches_without_touching_the_first(ran, case, family):
    before = logits(ran.model)
    copy.deepcopy(ran.model).tuners[0].detach()
    assert torch.equal(logits(ran.model), before)


def test_failing_attach_takes_back_what_it_did(case, family):
    if isinstance(run(case, family), Refusal):
        pytest.skip('refuses')
    backbone = tiny(family)
    state = snapshot(backbone.network)
    tuner = case.make(backbone)
    last, tune, seen = len(backbone.sites.find(tuner.at, tuner.may_miss)), tuner.tune, []

    def tune_and_fail(site):
        tune(site)
        seen.append(site)
        if len(seen) == last:
            raise RuntimeError('half-way')

    tuner.tune = tune_and_fail
    with pytest.raises(RuntimeError, match='half-way'):
        tuner.attach(backbone)
    assert not differing(snapshot(backbone.network), state)
    assert not leftovers(backbone.network)
    assert not list(tuner.trainable())


def test_bf16_autocast_trains(case, family, ran):
    model = trained(case, family)
    with torch.autocast('cpu', torch.bfloat16):
        out = model(images(6))
        loss, found = gradients(model, images(6), LABELS)
    assert out.dtype == torch.float32
    exact = logits(model)
    assert (out - exact).abs().max() < 0.15 * exact.abs().max()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_refusal_names_the_tuner_or_role_and_the_network(case, family):
    result = run(case, family)
    if case.on is None and not isinstance(result, Refusal):
        pytest.skip('works here')
    text = str(result.error)
    roles = (
        [case.make(tiny(family)).at]
        if isinstance(case.make(tiny(family)).at, str)
        else case.make(tiny(family)).at
    )
    shapes = {str(tuple(call.in_shape)) for call in result.backbone.sites.calls.values()}
    of_a_site = case.name in text and any(shape in text for shape in shapes)
    of_a_role = any(repr(role) in text for role in roles) and result.backbone.sites.family in text
    assert of_a_site or of_a_role, text
    assert not differing(snapshot(result.backbone.network), result.frozen)
    assert not leftovers(result.backbone.network)
