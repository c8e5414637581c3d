"""A module's own `forward` has one owner: what stood there before is kept, called and given back;
merged is a state of its own.
"""

import copy
import functools
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import vet
from tests.contract.runs import with_head
from tests.nets import tiny
from vet.core.model import ImageClassifier
from vet.core.reweight import Reweight, all_split, class_forward_replaced, forward_replaced, reweights_of
from vet.errors import NoSiteError, UserError
from vet.heads.linear import LinearHead
from vet.registry import TUNERS

# LoHa forms this whole weight
SPLIT, WHOLE = (dict(type='LoRA', rank=2, at='mlp.fc1'), dict(type='LoHa', rank=8, at='mlp.fc1'))


class Doubles(ModelHook):
    """A hook of accelerate that changes the output."""

    def post_forward(self, module, output):
        return 2 * output


def doubled(layer, x):
    return 2 * nn.Linear.forward(layer, x)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return tiny('vit')


@pytest.fixture
def images(backbone):
    return torch.randn(2, 3, *backbone.preprocessing.size)


def tuner(entry):
    made = TUNERS.build(dict(entry))
    made.eval()
    return made


def moved(made):
    """Its tuner's numbers, away from the identity."""
    for _, parameter in made.trainable():
        nn.init.normal_(parameter, std=0.1)
    return made


def fc1(backbone):
    return backbone.network.blocks[0].mlp.fc1


def classifier(backbone, *entries):
    model = ImageClassifier(
        backbone, [tuner(entry) for entry in entries or [SPLIT]], LinearHead(backbone.num_features, 2)
    ).eval()
    for made in model.tuners:
        moved(made)
    return model


@pytest.mark.parametrize('entry', [SPLIT, WHOLE], ids=['split', 'whole'])
@pytest.mark.parametrize('wrap', ['user', 'accelerate'])
def test_a_forward_that_stood_there_before_is_called_and_given_back(backbone, entry, wrap):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    if wrap == 'user':
        layer.forward = lambda x: doubled(layer, x)
    else:
        add_hook_to_module(layer, Doubles())
    stood, before = layer.__dict__['forward'], layer(x)
    assert torch.equal(before, 2 * nn.Linear.forward(layer, x))
    made = tuner(entry)
    made.attach(backbone)
    assert torch.allclose(layer(x), before)
    moved(made)
    (edit,) = reweights_of(layer)
    W, b = edit.delta(layer.weight, layer.bias)
    assert torch.allclose(layer(x), 2 * (x @ W.T + b), atol=1e-5) and not torch.allclose(
        layer(x), before, atol=1e-3
    )
    made.detach()
    assert layer.__dict__['forward'] is stood and torch.equal(layer(x), before)


@pytest.mark.parametrize('entry', [SPLIT, WHOLE], ids=['split', 'whole'])
def test_a_hook_of_accelerate_that_is_put_on_afterwards_outlives_the_tuner(backbone, entry):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    plain, made = layer(x), tuner(entry)
    made.attach(backbone)
    add_hook_to_module(layer, Doubles())
    made.detach()
    assert torch.equal(layer(x), 2 * plain)
    again = moved(tuner(entry))
    again.attach(backbone)
    assert torch.allclose(layer(x), 2 * plain)
    again.detach()
    remove_hook_from_module(layer)
    assert torch.equal(layer(x), plain)


# A forward that other code writes while the tuner is attached ----------------------------------------------------------


class Adds(ModelHook):
    def post_forward(self, module, output):
        return output + 1


def removed(layer):
    remove_hook_from_module(layer)
    return lambda y: y


def exchanged(layer):
    """accelerate calls the forward of before its first hook."""
    add_hook_to_module(layer, Adds())
    return lambda y: y + 1


def appended(layer):
    add_hook_to_module(layer, Adds(), append=True)
    return lambda y: 2 * y + 1


def written(layer):
    layer.forward = lambda x: doubled(layer, x)
    return lambda y: 2 * y


def deleted(layer):
    del layer.forward
    return lambda y: y


def wrapped(layer):
    inner = layer.forward
    layer.forward = functools.wraps(inner)(lambda x: 3 * inner(x))
    return lambda y: 3 * 2 * y


OUTSIDERS = [removed, exchanged, appended, written, deleted, wrapped]


@pytest.mark.parametrize('outsider', OUTSIDERS)
@pytest.mark.parametrize('entry', [SPLIT, WHOLE], ids=['split', 'whole'])
def test_the_tuner_outlives_a_forward_that_other_code_writes(backbone, entry, outsider):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    add_hook_to_module(layer, Doubles())
    made = tuner(entry)
    made.attach(backbone)
    moved(made)
    (edit,) = reweights_of(layer)
    W, b = (tensor.detach() for tensor in edit.delta(layer.weight, layer.bias))
    expected = outsider(layer)
    for _ in range(2):
        torch.testing.assert_close(layer(x), expected(x @ W.T + b))
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in edit.delta.parameters())
    made.detach()
    torch.testing.assert_close(layer(x), expected(nn.Linear.forward(layer, x)))
    again = moved(tuner(entry))
    again.attach(backbone)
    (edit,) = reweights_of(layer)
    W, b = edit.delta(layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected(x @ W.T + b))


def test_a_wrapper_stays_around_the_tuner_and_keeps_the_fast_route(backbone):
    layer, x, calls = fc1(backbone), torch.randn(3, fc1(backbone).in_features), []
    made = tuner(dict(SPLIT, dropout=0.5))
    made.attach(backbone)
    moved(made).eval()
    inner, expected = layer.forward, layer(x)

    def outer(x):
        calls.append(x)
        return 3 * inner(x)

    layer.forward = outer
    for _ in range(2):
        assert torch.equal(layer(x), 3 * expected)
    assert layer.__dict__['forward'] is outer and all_split(layer) and len(calls) == 2


def test_a_wrapper_that_calls_the_tuner_only_at_times_does_not_add_twice(backbone):
    layer, x, skips = fc1(backbone), torch.randn(3, fc1(backbone).in_features), True
    made = tuner(SPLIT)
    made.attach(backbone)
    moved(made)
    inner, expected = layer.forward, layer(x)
    layer.forward = lambda x: doubled(layer, x) if skips else inner(x)
    torch.testing.assert_close(layer(x), 2 * expected)
    skips = False
    torch.testing.assert_close(layer(x), expected)


def test_a_forward_that_needs_the_whole_weight_is_refused_beside_dropout(backbone):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    tuner(dict(SPLIT, dropout=0.5)).attach(backbone)
    layer.forward = lambda x: doubled(layer, x)
    for _ in range(2):
        with pytest.raises(NoSiteError, match='needs the whole weight'):
            layer(x)


def both_orders(backbone, first, second):
    """[whether the older edit of a layer acts first]: before rest and resume, and afterwards."""
    orders = []
    for _ in range(2):
        edits = [one._edits[0] for one in (first, second)]
        orders.append(reweights_of(edits[0].host) == edits)
        first.rest()
        first.resume()
    return orders


def test_the_tuner_of_another_process_acts_before_a_new_tuner(backbone, monkeypatch):
    """Whatever number of edits the other process had made."""
    first = tuner(SPLIT)
    first.attach(backbone)
    stored = pickle.dumps((backbone, first))
    monkeypatch.setattr(Reweight, 'latest', 0)
    backbone, first = pickle.loads(stored)
    second = tuner(WHOLE)
    second.attach(backbone)
    assert both_orders(backbone, first, second) == [True, True]


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_no_order():
    script = """if 1:
        import itertools, time
        clock = itertools.count(10**9, -1)
        time.time_ns = lambda: next(clock)
        from tests.core.test_reweight import SPLIT, WHOLE, both_orders, tuner
        from tests.nets import tiny
        backbone, first, second = tiny('vit'), tuner(SPLIT), tuner(WHOLE)
        first.attach(backbone)
        second.attach(backbone)
        assert both_orders(backbone, first, second) == [True, True]
    """
    subprocess.run([sys.executable, '-c', script], check=True)


def test_a_tuner_behind_the_layer_reads_the_output_with_the_update(backbone, images):
    model = classifier(backbone, SPLIT, dict(type='Adapter', at='mlp.fc1'))
    expected = model(images)
    fc1(backbone).forward = partial(nn.Linear.forward, fc1(backbone))
    torch.testing.assert_close(model(images), expected)


def test_a_copy_and_a_merge_keep_the_tuner_that_other_code_put_aside(backbone, images):
    add_hook_to_module(fc1(backbone), Doubles())
    model = classifier(backbone)
    remove_hook_from_module(fc1(backbone))
    expected, other = copy.deepcopy(model)(images), copy.deepcopy(model)
    model.merge()
    torch.testing.assert_close(model(images), expected)
    model.unmerge()
    torch.testing.assert_close(model(images), expected)
    plain = other.backbone.network
    other.tuners[0].detach()
    assert 'forward' not in fc1(other.backbone).__dict__ and not plain.blocks[0].mlp.fc1._forward_pre_hooks
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images), expected)


def test_a_leftover_of_accelerate_costs_no_route(backbone):
    add_hook_to_module(fc1(backbone), Doubles())
    remove_hook_from_module(fc1(backbone))
    tuner(dict(SPLIT, dropout=0.5)).attach(backbone)
    assert all_split(fc1(backbone))


def test_a_copy_keeps_what_stood_there(backbone, images):
    add_hook_to_module(fc1(backbone), Doubles())
    plain, model = backbone(images), classifier(backbone)
    expected = model(images)
    other = copy.deepcopy(model)
    assert torch.equal(other(images), expected)
    other.tuners[0].detach()
    assert torch.equal(other.backbone(images), plain) and torch.equal(model(images), expected)


def test_dropout_of_the_input_is_refused_where_another_forward_needs_the_whole_weight(backbone):
    layer = fc1(backbone)
    layer.forward = lambda x: doubled(layer, x)
    with pytest.raises(NoSiteError, match='needs the whole weight'):
        tuner(dict(SPLIT, dropout=0.1)).attach(backbone)
    assert not reweights_of(layer) and torch.equal(
        layer(torch.ones(1, 32)), doubled(layer, torch.ones(1, 32))
    )


def test_a_forward_for_a_while_gives_back_what_stood_there(backbone):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    made = moved(tuner(SPLIT))
    made.attach(backbone)
    before = layer(x)
    with forward_replaced(layer, lambda x: x):
        assert layer(x) is x
    assert torch.equal(layer(x), before)


@torch.no_grad()
def test_a_class_forward_for_a_while_gives_back_the_class_forward_around_it(backbone):
    layer, x = fc1(backbone), torch.randn(3, fc1(backbone).in_features)
    tuner(SPLIT).attach(backbone)  # adds 0 at its start

    def filled(value):
        return lambda x: torch.full((len(x), layer.out_features), value)

    with torch.autocast('cpu', torch.bfloat16):  # such a forward is for autocast alone
        before = layer(x)
        with class_forward_replaced(layer, filled(1.0)):
            with class_forward_replaced(layer, filled(2.0)):
                assert layer(x).unique().tolist() == [2]
            assert layer(x).unique().tolist() == [1]
        assert torch.equal(layer(x), before)


# Merged ---------------------------------------------------------------------------------------------------------------


def test_merging_twice_is_merging_once(backbone, images):
    model = classifier(backbone)
    tuned = model(images)
    once = {name: value.clone() for name, value in model.merge().state_dict().items()}
    twice = model.merge().state_dict()
    assert all(torch.equal(twice[name], value) for name, value in once.items())
    model.unmerge()
    assert torch.equal(model(images), tuned) and not model.is_merged


def test_a_merged_model_refuses_what_would_go_wrong_in_silence(backbone, images):
    model = classifier(backbone)
    tuned, state = model(images), {name: value.clone() for name, value in model.trained_state().items()}
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    model.merge()
    merged = model(images)
    with pytest.raises(UserError, match=r'no tuner can be detached; call unmerge\(\)'):
        model.tuners[0].detach()
    with pytest.raises(UserError, match=r'no tuner can be attached; call unmerge\(\)'):
        tuner(dict(type='BitFit')).attach(backbone)
    with pytest.raises(UserError, match=r'cannot be loaded.*Call unmerge\(\)'):
        model.load_trained_state({name: torch.zeros_like(value) for name, value in state.items()})
    with pytest.raises(UserError, match=r'cannot be saved as a state_dict.*Call unmerge\(\)'):
        model.state_dict()
    with pytest.raises(UserError, match=r'cannot be loaded from a state_dict.*Call unmerge\(\)'):
        model.load_state_dict(zeros)
    with pytest.raises(UserError, match=r'no tuner can be loaded; call unmerge\(\)'):
        model.tuners.load_state_dict({}, strict=False)
    assert torch.equal(model(images), merged)
    with pytest.raises(UserError, match=r'cannot be trained.*Call unmerge\(\)'):
        model.train()(images)
    with pytest.raises(UserError, match=r'cannot be trained.*Call unmerge\(\)'):
        model.eval()(images).sum().backward()
    with torch.no_grad():
        assert torch.equal(model.train()(images), merged)
    model.eval().unmerge()
    assert torch.equal(model(images), tuned)
    assert all(torch.equal(model.trained_state()[name], value) for name, value in state.items())


def test_a_merged_model_still_says_how_its_input_matters(backbone, images):
    model = classifier(backbone)
    images.requires_grad_()
    (unmerged,) = torch.autograd.grad(model(images).sum(), images)
    model.merge()
    (merged,) = torch.autograd.grad(model(images).sum(), images)
    assert torch.allclose(merged, unmerged, atol=1e-5)


def test_after_unmerge_everything_works_again(backbone, images):
    plain, model = backbone(images), classifier(backbone, SPLIT, dict(type='BitFit'))
    model.merge()
    model.unmerge()
    model.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.trainable().values())
    for made in reversed(model.tuners):
        made.detach()
    assert torch.equal(backbone(images), plain)


def test_merging_keeps_a_forward_that_stood_there(backbone, images):
    add_hook_to_module(fc1(backbone), Doubles())
    stood, model = fc1(backbone).__dict__['forward'], classifier(backbone, WHOLE)
    tuned = model(images)
    model.merge()
    assert fc1(backbone).__dict__['forward'] is stood and torch.allclose(model(images), tuned, atol=1e-5)
    model.unmerge()
    assert torch.equal(model(images), tuned)


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_tuner_of_a_merged_network_stays_after_unmerge(backbone, images):
    """Both tuners then act, in the order in which they came."""
    first, second = (TUNERS.build(dict(type='LoRA', rank=2, at='mlp.fc1')) for _ in range(2))
    model = with_head(backbone, [first]).eval()
    with torch.no_grad():
        for _, parameter in first.trainable():
            parameter.normal_(0, 0.3)
        alone = backbone.network(images)
        tuned = vet.tune(model.merge(), second).eval()
        for _, parameter in second.trainable():
            parameter.normal_(0, 0.3)
        both = tuned(images)
        assert (both - alone).abs().max() > 0.1
        model.unmerge()
        torch.testing.assert_close(tuned(images), both)
        tuned.detach()
        assert backbone.network(images).equal(alone)


@torch.no_grad()
def test_a_merge_that_fails_halfway_is_taken_back(backbone, images):
    frozen = backbone.network(images)
    tuner = TUNERS.build(SPLIT)
    model = with_head(backbone, [tuner]).eval()
    for _, parameter in tuner.trainable():
        parameter.normal_(0, 0.3)
    tuned = backbone.network(images)
    handle = list(tuner.deltas.values())[1].register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.merge()
    handle.remove()
    assert backbone.network(images).equal(tuned) and not backbone.is_merged
    model.merge()
    torch.testing.assert_close(backbone.network(images), tuned)
    model.unmerge()
    tuner.detach()
    assert backbone.network(images).equal(frozen)
