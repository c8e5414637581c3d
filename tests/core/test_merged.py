"""Merged is a state of a tuner and of a layer: each operation works in it, or is refused with a message."""

import copy
import pickle
import random
import warnings

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import nn

import vet
from tests.contract.runs import with_head
from tests.nets import tiny
from vet.core.multitask import MultiTaskClassifier
from vet.core.tuned_model import TunedModel
from vet.errors import UserError
from vet.registry import TUNERS

# SSF changes the bias that BitFit trains.
ENTRIES = (dict(type='LoRA', rank=2, at='mlp.fc1'), dict(type='SSF', at='mlp.fc1'), dict(type='BitFit'))
LORA, BIAS = ENTRIES[0], ENTRIES[2]


def built(entry):
    return TUNERS.build(dict(entry))


def moved(tuners):
    with torch.no_grad():
        for tuner in tuners:
            for _, parameter in tuner.trainable():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


class Subject:
    """A tuned network of one kind: a classifier, or the result of vet.tune."""

    def __init__(self, kind, *entries):
        torch.manual_seed(0)
        backbone = tiny('vit')
        self.images = torch.randn(2, 3, *backbone.preprocessing.size)
        self.plain = backbone.network.eval()(self.images)
        tuners = [built(entry) for entry in entries or ENTRIES]
        if kind == 'classifier':
            self.model, self.frozen = with_head(backbone, tuners), backbone
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self.model = vet.tune(backbone.network, *tuners, example=self.images[:1])
            self.frozen = self.model
        moved(tuners)
        self.model.eval()
        self.tuned = self.output()
        self.state = {name: value.clone() for name, value in self.model.trained_state().items()}

    @property
    def tuners(self):
        return list(self.model.tuners)

    @torch.no_grad()
    def output(self):
        return self.frozen.network(self.images)

    def require_tuned(self):
        """Every operation leaves the computation and the trained numbers as they were."""
        torch.testing.assert_close(self.output(), self.tuned, atol=1e-5, rtol=1e-5)
        state = self.model.trained_state()
        assert all(torch.equal(state[name], value) for name, value in self.state.items())

    def require_plain(self):
        """Unmerged and detached, the network is bit for bit as before."""
        self.model.unmerge()
        assert torch.equal(self.output(), self.tuned)
        for tuner in reversed(self.tuners):
            tuner.detach()
        assert torch.equal(self.output(), self.plain)


def attach(subject):
    third = built(dict(type='LoRA', rank=2, at='attn.qkv'))
    third.attach(subject.frozen)
    third.detach()


def rest(subject):
    for tuner in reversed(subject.tuners):
        tuner.rest()
    for tuner in subject.tuners:
        tuner.resume()


def load(subject):
    if hasattr(subject.model, 'load_trained_state'):
        subject.model.load_trained_state(subject.state)
    else:
        subject.model.load_state_dict(subject.model.state_dict())


def load_deltas(subject):
    deltas = subject.tuners[0].deltas
    deltas.load_state_dict(deltas.state_dict())


def load_a_delta(subject):
    delta = next(iter(subject.tuners[0].deltas.values()))
    delta.load_state_dict(delta.state_dict())


def load_the_tuner(subject):
    subject.tuners[1].load_state_dict(subject.tuners[1].state_dict())


def train(subject):
    subject.model.train()(subject.images).sum().backward()


def train_in_eval(subject):
    subject.model.eval()(subject.images).sum().backward()


def train_the_network(subject):
    subject.model.train()
    subject.frozen.network(subject.images).sum().backward()


def write(subject):
    """Other numbers into a tuner, for one call."""
    parameter = next(subject.tuners[0].parameters())
    before = parameter.detach().clone()
    parameter.data.add_(0)  # is not seen
    try:
        with torch.no_grad():
            parameter.add_(1)
        subject.model(subject.images)
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def write_the_same(subject):
    """As DistributedDataParallel does, when it wraps a model."""
    with torch.no_grad():
        for parameter in subject.model.tuners.parameters():
            parameter.copy_(parameter.clone())
    subject.model(subject.images)


# Operations that a merged model refuses, each with a part of the message
REFUSED = {
    attach: 'no tuner can be attached; call unmerge',
    rest: 'no tuner can be taken out; call unmerge',
    load: 'is merged, so that it cannot be',
    load_deltas: 'no tuner can be loaded; call unmerge',
    load_a_delta: 'no tuner can be loaded; call unmerge',
    load_the_tuner: 'no tuner can be loaded; call unmerge',
    train: 'cannot be trained: the tuners would get no gradient',
    train_in_eval: 'cannot be trained: the tuners would get no gradient',
    train_the_network: 'cannot be trained: the tuners would get no gradient',
    write: 'numbers of LoRA have changed since merge',
    lambda subject: subject.tuners[0].detach(): 'no tuner can be detached; call unmerge',
    lambda subject: subject.model.state_dict(): 'is merged, so that it cannot be saved',
}
ALLOWED = [
    lambda subject: subject.model.merge(),
    lambda subject: (subject.model.merge(), subject.model.merge()),
    lambda subject: subject.model.unmerge(),
    lambda subject: (subject.model.unmerge(), subject.model.unmerge(), subject.model.merge()),
    lambda subject: subject.model.trained_state(),
    write_the_same,
    lambda subject: copy.deepcopy(subject.frozen.network)(subject.images),
    lambda subject: subject.model(subject.images.clone().requires_grad_()).sum().backward(),
]


def pickled(subject):
    return pickle.loads(pickle.dumps(subject))


STATES = dict(
    attached=lambda subject: subject,
    merged=lambda subject: subject.model.merge() and subject,
    copied=lambda subject: subject.model.merge() and copy.deepcopy(subject),
    pickled=lambda subject: subject.model.merge() and pickled(subject),
    unmerged=lambda subject: subject.model.merge() and undone(subject),
    unmerged_copy=lambda subject: subject.model.merge() and undone(copy.deepcopy(subject)),
)


SLOW = ('copied', 'unmerged', 'unmerged_copy')


def undone(subject):
    subject.model.unmerge()
    return subject


@pytest.mark.parametrize('kind', ['classifier', 'vet.tune'])
@pytest.mark.parametrize(
    'state', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STATES]
)
def test_each_operation_works_or_is_refused(kind, state):
    subject = STATES[state](Subject(kind))
    subject.require_tuned()
    is_merged = state in ('merged', 'copied', 'pickled')
    assert subject.model.is_merged == subject.tuners[0].is_merged == is_merged
    for operation, message in REFUSED.items():
        if is_merged and operation is write:  # below, because a written tuner stays written
            continue
        if is_merged:
            with pytest.raises(UserError, match=message):
                operation(subject)
            assert all(one.grad is None for one in subject.model.trainable().values())
            assert subject.model.is_merged
        elif operation in (attach, rest, load, load_deltas, load_a_delta, train, train_in_eval, write):
            operation(subject)
        subject.model.eval().zero_grad()
        subject.require_tuned()
    for operation in ALLOWED:
        operation(subject)
        subject.require_tuned()
    subject.model.merge()
    with pytest.raises(UserError, match=REFUSED[write]):
        write(subject)
    subject.model.unmerge()
    subject.model.merge()
    subject.require_tuned()
    subject.require_plain()


@pytest.mark.parametrize('kind', ['classifier', 'vet.tune'])
def test_a_tuner_that_rests_is_not_merged(kind):
    subject = Subject(kind)
    for _ in range(2):
        subject.tuners[0].rest()
    with pytest.raises(UserError, match='LoRA cannot be merged, because it rests'):
        subject.model.merge()
    for _ in range(2):
        subject.tuners[0].resume()
    subject.tuners[0].resume()
    assert len(next(iter(subject.frozen.network.blocks)).mlp.fc1._forward_pre_hooks) == 1
    subject.require_plain()


def test_a_bare_tuner_that_rests_twice_acts_once():
    subject = Subject('classifier', LORA, dict(type='Adapter', at='mlp'), BIAS)
    for tuner in subject.tuners:
        tuner.resume()
        assert torch.equal(subject.output(), subject.tuned)
    for tuner in reversed(subject.tuners):
        tuner.rest()
        tuner.rest()
    assert torch.equal(subject.output(), subject.plain)
    subject.tuners[1].detach()
    assert torch.equal(subject.output(), subject.plain)


def test_a_merge_within_inference_mode_is_an_ordinary_merge():
    """Its weights may stand in a backward pass later."""
    subject = Subject('vet.tune')
    with torch.inference_mode():
        subject.model.merge()
    images = subject.images.clone().requires_grad_()
    subject.model(images).sum().backward()
    assert images.grad.any()
    subject.model.double()
    with torch.inference_mode():
        subject.model.unmerge()
    subject.model.float()
    train(subject)
    assert all(one.grad is not None for one in subject.model.trainable().values())


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_merged_tuner_with_buffers_changes_its_type():
    """Its numbers were loaded, so its buffers were written to. Another type makes new buffers."""
    backbone = tiny('vit')
    images = torch.randn(2, 3, *backbone.preprocessing.size)
    tuned = vet.tune(backbone.network, built(dict(LORA, variant='vera')), example=images).eval()
    moved(tuned.tuners)
    with torch.no_grad():
        for buffer in tuned.tuners.buffers():
            buffer.copy_(buffer.clone())
        expected = tuned(images)
        tuned.merge()
        torch.testing.assert_close(tuned.double()(images.double()).float(), expected)
        tuned.unmerge()
        torch.testing.assert_close(tuned(images.double()).float(), expected, atol=1e-4, rtol=1e-4)


def test_a_new_parameter_of_a_merged_tuner_is_seen():
    """Even if it was written to as often as the old parameter."""
    subject = Subject('vet.tune', LORA)
    subject.model.merge()
    delta = next(iter(subject.tuners[0].deltas.values()))
    new = nn.Parameter(torch.ones_like(delta.A))
    while new._version < delta.A._version:
        with torch.no_grad():
            new.add_(0)
    delta.A = new
    with pytest.raises(UserError, match=REFUSED[write]):
        subject.model(subject.images)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_copy_of_a_merged_network_is_a_plain_network(copied):
    subject = Subject('vet.tune')
    network = subject.model.merge()
    with pytest.raises(UserError, match='are merged into this .* Tune a copy'):
        vet.tune(network, built(LORA), example=subject.images[:1])
    plain = copied(network)
    again = vet.tune(plain, built(LORA), built(BIAS), example=subject.images[:1]).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(subject.images), subject.tuned)
    again.train()(subject.images).sum().backward()
    assert all(one.grad is not None for one in again.trainable().values())
    again.use(None)
    again.use('default')
    with pytest.raises(UserError, match='tuned already'):
        vet.tune(plain, built(LORA), example=subject.images[:1])
    assert not hasattr(again.detach(), '_is_tuned_by_vet')
    subject.require_tuned()
    subject.require_plain()


def test_a_copy_of_a_merged_tuned_network_is_merged():
    subject = Subject('vet.tune')
    subject.model.merge()
    for tuned in (copy.deepcopy(subject.model), pickle.loads(pickle.dumps(subject.model))):
        with pytest.raises(UserError, match='Tune a copy'):
            vet.tune(tuned.network, built(LORA), example=subject.images[:1])
        tuned.unmerge()
        with pytest.raises(UserError, match='tuned already'):
            vet.tune(tuned.network, built(LORA), example=subject.images[:1])
        assert torch.equal(tuned.detach()(subject.images), subject.plain)


@pytest.mark.parametrize('kind', ['classifier', 'vet.tune'])
def test_a_merge_within_autocast_forms_its_weights_in_float32(kind):
    subject = Subject(kind, LORA, dict(type='OFT', block=8))
    with torch.autocast('cpu', torch.bfloat16):
        subject.model.merge()
    subject.require_tuned()


@pytest.mark.parametrize('kind', ['classifier', 'vet.tune'])
@pytest.mark.parametrize('entries', [(LORA,), (LORA, BIAS)], ids=len)
def test_gradients_of_activations_are_right_and_train_nothing(kind, entries):
    """With BitFit, an activation needs a gradient anyway, and is no leaf."""
    subject = Subject(kind, *entries)
    kept = []

    def keep(module, args, out):
        kept.append(out if out.requires_grad else out.requires_grad_())

    subject.frozen.network.blocks[1].register_forward_hook(keep)

    def score():
        kept.clear()
        return subject.model(subject.images).square().sum()

    expected = torch.autograd.grad(score(), kept)[0]
    subject.model.merge()
    torch.testing.assert_close(torch.autograd.grad(score(), kept)[0], expected, atol=1e-5, rtol=1e-4)
    trains = [one for one in subject.frozen.network.parameters() if one.requires_grad]
    if len(entries) == 1:  # the activation is a leaf, and shows that the pass looks for its gradient
        score().backward()
        torch.testing.assert_close(kept[0].grad, expected, atol=1e-5, rtol=1e-4)
        return
    with pytest.raises(UserError, match='cannot be trained'):
        score().backward()
    with pytest.raises(UserError, match='cannot be trained'):
        torch.autograd.grad(score(), trains[0])
    assert all(one.grad is None for one in trains)


def test_an_offloaded_network_is_not_merged():
    subject = Subject('vet.tune', LORA)
    accelerate.cpu_offload(subject.frozen.network, torch.device('cpu'))
    with pytest.raises(UserError, match='are on the meta device, without numbers'):
        subject.model.merge()
    assert not subject.model.is_merged
    subject.require_tuned()
    remove_hook_from_submodules(subject.frozen.network)
    subject.model.merge()
    subject.require_tuned()
    subject.require_plain()


# Several models on one network --------------------------------------------------------------------------------


class Two:
    """Two classifiers on one backbone, whose tuners act on the same layers or on others."""

    def __init__(self, place, *second):
        torch.manual_seed(0)
        self.backbone = tiny('vit')
        self.images = torch.randn(2, 3, *self.backbone.preprocessing.size)
        self.backbone.eval()
        self.plain = self.output()
        kinds = second or [dict(type='LoHa', rank=2, at=place)]
        self.models = [
            with_head(self.backbone, [built(LORA)]),
            with_head(self.backbone, list(map(built, kinds))),
        ]
        for model in self.models:
            moved(model.tuners)
            model.eval()
        self.tuned = self.output()

    @torch.no_grad()
    def output(self):
        return self.backbone.network(self.images)


@pytest.mark.parametrize('place', ['mlp.fc1', 'attn.qkv'])
def test_any_order_of_merges_keeps_the_computation(place):
    """Of the same layers, the later model is merged later, and unmerged first."""
    draw, refusals = random.Random(0), set()
    for _ in range(4):
        two = Two(place)
        for _ in range(12):
            number, name = draw.randrange(2), draw.choice(['merge', 'unmerge', 'rest', 'detach'])
            model = two.models[number]
            was = [one.is_merged for one in two.models]
            try:
                if name == 'rest':
                    rest_and_resume(two, model)
                elif name == 'detach' and model.is_merged:
                    model.tuners[0].detach()
                elif name != 'detach':
                    getattr(model, name)()
                    was[number] = name == 'merge'
            except UserError as error:
                refusals.add((name, str(error).partition(':')[2][:40]))
            assert [one.is_merged for one in two.models] == was
            torch.testing.assert_close(two.output(), two.tuned)
        for model in reversed(two.models):
            model.unmerge()
        assert torch.equal(two.output(), two.tuned)
        for model in draw.sample(two.models, 2):
            model.tuners[0].detach()
        assert torch.equal(two.output(), two.plain) and not two.backbone.is_merged
    same = place == 'mlp.fc1'
    assert {name for name, _ in refusals} == (
        {'merge', 'unmerge', 'detach', 'rest'} if same else {'detach', 'rest'}
    )


def rest_and_resume(two, model):
    """The order of the tuners stays: all that are not merged rest."""
    free = [one.tuners[0] for one in two.models if not one.is_merged]
    model.tuners[0].refuse_merged('taken out')
    for tuner in reversed(free):
        tuner.rest()
    for tuner in free:
        tuner.resume()


def test_the_other_model_does_not_end_a_merge():
    two = Two('attn.qkv')
    first, second = two.models
    first.merge()
    second.unmerge()
    assert first.is_merged and two.backbone.is_merged and not second.is_merged
    with pytest.raises(UserError, match='no tuner can be detached'):
        first.tuners[0].detach()
    second.train()(two.images).sum().backward()  # its tuner is attached, and trains
    assert all(one.grad is not None for one in second.trainable().values())
    second.tuners[0].detach()
    first.unmerge()
    first.tuners[0].detach()
    assert torch.equal(two.output(), two.plain)


def test_a_model_merges_only_what_acts_first():
    two = Two('mlp.fc1')
    first, second = two.models
    with pytest.raises(UserError, match='a tuner that is not of this model changes the weight first'):
        second.merge()
    assert not second.is_merged and not two.backbone.is_merged
    first.merge()
    second.merge()
    with pytest.raises(UserError, match='Unmerge the model that was merged later'):
        first.unmerge()
    assert first.is_merged and second.is_merged
    torch.testing.assert_close(two.output(), two.tuned)


def test_a_bias_that_another_model_trains_is_not_merged():
    two = Two('', BIAS)
    two.models[0].merge()  # LoRA changes no bias
    two.models[0].unmerge()
    third = with_head(two.backbone, [built(ENTRIES[1])]).eval()
    moved(third.tuners)
    two.models[0].merge()
    with pytest.raises(
        UserError, match="'bias' of Linear cannot be merged: it trains, but by no tuner of this"
    ):
        third.merge()
    assert not third.is_merged
    two.models[0].unmerge()
    third.tuners[0].detach()
    assert torch.equal(two.output(), two.tuned)


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_tuner_that_trains_a_merged_weight_goes_before_the_merge_is_undone():
    subject = Subject('classifier')
    tuned = vet.tune(subject.model.merge(), built(BIAS), example=subject.images[:1]).eval()
    moved(tuned.tuners)
    both = subject.output()
    with pytest.raises(UserError, match='detach the tuner that came later'):
        subject.model.unmerge()
    assert torch.equal(subject.output(), both) and subject.model.is_merged
    tuned.detach()
    subject.require_plain()


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
@pytest.mark.parametrize('copied', [False, True])
@pytest.mark.parametrize('was_merged', [False, True])
def test_a_tuner_that_rests_does_not_undo_a_merge(was_merged, copied):
    """Of the weight that it trains, as a set of tuners that is switched off."""
    subject = Subject('classifier', ENTRIES[1])
    if was_merged:
        subject.model.merge()
    tuned = vet.tune(subject.frozen.network, built(LORA), built(BIAS), example=subject.images[:1]).eval()
    moved(tuned.tuners)
    both = subject.output()
    tuned.use(None)
    if was_merged:
        subject.model.unmerge()
    else:
        subject.model.merge()
        if copied:
            subject, tuned = copy.deepcopy((subject, tuned))
    with pytest.raises(UserError, match='was merged or unmerged while a tuner that trains it rested'):
        tuned.use('default')
    assert tuned.active is None
    subject.require_tuned()
    if not was_merged:
        subject.model.unmerge()
        tuned.use('default')
        assert torch.equal(subject.output(), both)
    tuned.detach()
    subject.require_plain()


def test_a_merged_backbone_carries_no_other_tuners():
    """Their images would see the merged weights."""
    subject = Subject('classifier', LORA)
    subject.model.merge()
    with pytest.raises(UserError, match='cannot be the untouched backbone of several tuners'):
        TunedModel(subject.frozen, {})
    subject.model.unmerge()
    subject.tuners[0].detach()
    TunedModel(subject.frozen, {})


def test_a_task_that_is_merged_loads_nothing():
    tasks = {name: Subject('classifier', LORA).model for name in 'ab'}
    model = MultiTaskClassifier(tasks, shared='.*A')
    state = model.trained_state()
    tasks['a'].merge()
    with pytest.raises(UserError, match='is merged, so that it cannot be loaded'):
        model.load_trained_state(state)
    nn.init.zeros_(next(iter(tasks['b'].tuners[0].parameters())))  # A is shared
    with pytest.raises(UserError, match='numbers of LoRA have changed since merge'):
        tasks['a'](torch.zeros(1, 3, 32, 32))


@pytest.mark.slow
def test_a_merged_model_is_one_graph():
    subject = Subject('classifier')
    expected = subject.model(subject.images)
    subject.model.merge()
    with torch.no_grad():
        graph = torch.compile(subject.model, backend='eager', fullgraph=True)
        torch.testing.assert_close(graph(subject.images), expected, atol=1e-5, rtol=1e-5)
