"""One optimizer step: its gradient, what it updates, and its learning rate, against independent
computation.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import images, tiny
from vet.config import Schedule, Train
from vet.core.model import ImageClassifier
from vet.core.tuner import Tuner
from vet.engine.device import make_accelerator
from vet.engine.ema import Average, swapped
from vet.engine.feed.batches import Batch, Order
from vet.engine.learner import Learner
from vet.engine.meter import Meter
from vet.engine.optim import build_optimizer, lr_factor
from vet.errors import UserError
from vet.heads.linear import LinearHead
from vet.registry import OPTIMIZERS, TUNERS

CONSTANT = Schedule('ConstantLR', T_max=10)


def make(tuner='BitFit', family='vit', order=None, **train):
    """A Learner on a tiny classifier of 3 classes; SGD of rate 1, so that a step shows the gradient."""
    torch.manual_seed(0)
    backbone = tiny(family)
    tuners = [TUNERS.build(dict(type=tuner)) if isinstance(tuner, str) else tuner]
    model = ImageClassifier(backbone, tuners, LinearHead(backbone.num_features, 3), ['a', 'b', 'c'])
    settings = Train(**dict(optimizer=dict(type='SGD', lr=1.0), lr_scheduler=CONSTANT, max_epochs=10) | train)
    learner = Learner(model, settings, order or Order(8, 8, 1, seed=0), make_accelerator('cpu', 'fp32'))
    learner.net.train()
    return learner


def batches_of(*sizes, seed=2):
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2, 1, 1])
    return [
        Batch(x, y, torch.ones(len(y)))
        for x, y in zip(images(sum(sizes), seed=seed).split(sizes), labels[: sum(sizes)].split(sizes))
    ]


def step(learner, batches, number=0):
    return learner.step(batches, number, Meter(torch.device('cpu')))


def values(learner):
    return {name: value.detach().clone() for name, value in learner.parameters.items()}


def gradients(model, x, targets, **options):
    """Of the mean loss of one batch, by plain torch."""
    model = copy.deepcopy(model).train()
    F.cross_entropy(model(x), targets, **options).backward()
    return {name: parameter.grad for name, parameter in model.trainable().items()}


@pytest.mark.parametrize('sizes', [(8,), (3, 3, 2), (5, 1, 1, 1)])
def test_uneven_batches_have_the_gradient_of_one(sizes):
    learner = make(order=Order(8, 8, 1, seed=0))  # a step of 8 images
    [whole] = batches_of(8)
    expected, before = gradients(learner.model, whole.images, whole.labels), values(learner)
    step(learner, batches_of(*sizes))
    for name, after in values(learner).items():
        torch.testing.assert_close(before[name] - after, expected[name], rtol=1e-4, atol=2e-6)
    assert sum(gradient.abs().sum() for gradient in expected.values()) > 1


def test_filling_images_have_no_gradient():
    learner, other = make(order=Order(5, 5, 1, seed=0)), make(order=Order(5, 5, 1, seed=0))
    [batch] = batches_of(5)
    filled = Batch(
        torch.cat([batch.images, images(2, seed=9)]),
        torch.cat([batch.labels, torch.tensor([0, 1])]),
        torch.tensor([1.0] * 5 + [0.0] * 2),
    )
    step(learner, [batch])
    step(other, [filled])
    for name, value in values(learner).items():
        torch.testing.assert_close(values(other)[name], value, rtol=1e-4, atol=2e-6)


def test_the_last_step_of_an_epoch_is_a_mean_too():
    learner = make(order=Order(11, 4, 2, seed=0))  # steps of 8 and 3 images
    [batch] = batches_of(3)
    expected, before = gradients(learner.model, batch.images, batch.labels), values(learner)
    step(learner, [batch], 1)
    for name, after in values(learner).items():
        torch.testing.assert_close(before[name] - after, expected[name], rtol=1e-4, atol=2e-6)


def test_clipping():
    free, clipped = make(), make(clip_norm=0.01)
    before = values(free)
    for learner in (free, clipped):
        step(learner, batches_of(8))
    free_step, clipped_step = (
        {name: before[name] - after for name, after in values(learner).items()} for learner in (free, clipped)
    )
    norm = math.sqrt(sum(float(change.double().pow(2).sum()) for change in free_step.values()))
    assert norm > 0.1
    for name in before:
        torch.testing.assert_close(clipped_step[name], free_step[name] * (0.01 / norm), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize('sizes', [(8,), (3, 3, 2)])
def test_sam_takes_the_gradient_at_the_worst_weights_nearby(sizes):
    """w - g(w + rho g(w) / ||g(w)||), by plain torch."""
    learner = make(sam=0.3)
    [whole] = batches_of(8)
    before = values(learner)
    first = gradients(learner.model, whole.images, whole.labels)
    norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in first.values()))
    worst = copy.deepcopy(learner.model)
    with torch.no_grad():
        for name, parameter in worst.trainable().items():
            parameter += 0.3 / norm * first[name]
    expected = gradients(worst, whole.images, whole.labels)
    meter = Meter(torch.device('cpu'))
    learner.step(batches_of(*sizes), 0, meter)
    for name, after in values(learner).items():
        torch.testing.assert_close(before[name] - after, expected[name], rtol=1e-3, atol=1e-5)
    assert max(float((first[name] - expected[name]).abs().max()) for name in first) > 1e-3
    assert meter.sums()[2] == 8  # images count once


def test_sam_keeps_the_statistics_of_the_weights_themselves():
    plain, sam = make('Full', 'resnet'), make('Full', 'resnet', sam=0.5)
    for learner in (plain, sam):
        step(learner, batches_of(8))
    found = [learner.model.trained_state() for learner in (plain, sam)]
    kept = [name for name in found[0] if 'running' in name or 'num_batches' in name]
    assert kept and all(found[0][name].equal(found[1][name]) for name in kept)


def test_sam_draws_the_same_dropout_twice():
    """With rho near 0, both gradients are the same gradient."""
    tuner = dict(type='LoRA', rank=2, dropout=0.5)
    ends = []
    for rho in (None, 1e-12):
        learner = make(TUNERS.build(tuner), sam=rho, mixup=0.4)
        step(learner, batches_of(8))
        ends.append(values(learner))
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_label_smoothing():
    learner = make(label_smoothing=0.2)
    [batch] = batches_of(8)
    targets = 0.8 * F.one_hot(batch.labels, 3).float() + 0.2 / 3
    expected, before = gradients(learner.model, batch.images, targets), values(learner)
    step(learner, [batch])
    for name, after in values(learner).items():
        torch.testing.assert_close(before[name] - after, expected[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_mixed_images_and_targets(kind):
    """What the network sees is a mixture with each image's neighbour, and the gradient is that of the
    same mixture of labels.
    """
    learner, seen = make(**{kind: 1.0}), []
    learner.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    [batch] = batches_of(8)
    before = copy.deepcopy(learner.model)
    step(learner, [batch], 3)
    [mixed] = seen
    other = batch.images.roll(1, 0)
    kept = (mixed == batch.images).flatten(1)
    if kind == 'cutmix':
        assert (kept | (mixed == other).flatten(1)).all()
        share = kept[0].float().mean()
    else:
        share = ((mixed - other).flatten() @ (batch.images - other).flatten()) / (
            batch.images - other
        ).square().sum()
        torch.testing.assert_close(mixed, share * batch.images + (1 - share) * other, rtol=1e-4, atol=1e-5)
    assert 0.01 < share < 0.99
    one_hot = F.one_hot(batch.labels, 3).float()
    expected = gradients(before, mixed, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    for name, after in values(learner).items():
        torch.testing.assert_close(
            before.trainable()[name].detach() - after, expected[name], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    'config, fused',
    [
        (dict(type='AdamW'), True),
        (dict(type='SGD', momentum=0.9), True),
        (dict(type='AdamW', fused=False), False),
        (dict(type='Adam', foreach=True), None),
        (dict(type='Adagrad'), None),
    ],
    ids=str,
)
def test_one_kernel_updates_all_where_nothing_else_is_chosen(config, fused):
    optimizer = build_optimizer(config | dict(lr=0.1), {'a': nn.Parameter(torch.ones(2, 2))})
    assert optimizer.defaults['fused'] is fused


def test_an_optimizer_without_a_type():
    with pytest.raises(UserError, match='given as a dict with a "type"'):
        build_optimizer(dict(lr=0.1), {'a': nn.Parameter(torch.ones(2, 2))})


def test_only_trainable_parameters_reach_the_optimizer():
    learner = make('LoRA')
    given = {id(parameter) for group in learner.optimizer.param_groups for parameter in group['params']}
    assert given == {id(parameter) for parameter in learner.model.trainable().values()}
    assert not any(
        parameter.requires_grad for name, parameter in learner.model.backbone.network.named_parameters()
    )
    frozen = {name: value.clone() for name, value in learner.model.backbone.network.state_dict().items()}
    step(learner, batches_of(8))
    assert all(
        value.equal(frozen[name]) for name, value in learner.model.backbone.network.state_dict().items()
    )


def test_parameter_groups():
    """Decay on matrices alone, unless they are marked; the head at its own rate."""
    prompt = nn.Parameter(torch.zeros(4, 8))
    prompt.no_weight_decay = True
    parameters = {
        'tuners.0.deltas.A': nn.Parameter(torch.zeros(2, 8)),
        'tuners.0.deltas.prompt': prompt,
        'tuners.0.deltas.scale': nn.Parameter(torch.zeros(8)),
        'head.fc.weight': nn.Parameter(torch.zeros(3, 8)),
        'head.fc.bias': nn.Parameter(torch.zeros(3)),
    }
    optimizer = build_optimizer(dict(type='AdamW', lr=0.1, weight_decay=0.05), parameters, head_lr=0.3)
    names = {parameter: name for name, parameter in parameters.items()}
    found = {
        names[parameter]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert found == {
        'tuners.0.deltas.A': (0.1, 0.05),
        'tuners.0.deltas.prompt': (0.1, 0),
        'tuners.0.deltas.scale': (0.1, 0),
        'head.fc.weight': (0.3, 0.05),
        'head.fc.bias': (0.3, 0),
    }


@pytest.mark.parametrize('kind', ['CosineAnnealingLR', 'LinearLR', 'ConstantLR'])
def test_schedule(kind):
    """In the middle of each step: warmup over 2 epochs, then down to a tenth at epoch 10, where it stays."""
    schedule = Schedule(kind, T_max=10, warmup_epochs=2, eta_min=0.1)
    fall = dict(
        CosineAnnealingLR=lambda t: 0.55 + 0.45 * math.cos(math.pi * t),
        LinearLR=lambda t: 1 - 0.9 * t,
        ConstantLR=lambda t: 1,
    )[kind]
    for i in range(60):
        epoch = (i + 0.5) / 5
        expected = epoch / 2 if epoch < 2 else fall(min((epoch - 2) / 8, 1))
        assert lr_factor(schedule, epoch) == pytest.approx(expected)


def test_learning_rates_of_a_step():
    learner = make(
        'LoRA',
        order=Order(20, 4, 1, seed=0),
        optimizer=dict(type='AdamW', lr=0.1),
        head_lr=0.4,
        lr_scheduler=Schedule(T_max=10, warmup_epochs=2),
    )
    for number, expected in ((0, 0.05), (9, 0.95), (10, (1 + math.cos(math.pi * 0.0125)) / 2)):
        assert step(learner, batches_of(4), number) == pytest.approx(0.1 * expected)
        rates = {group['lr'] for group in learner.optimizer.param_groups}
        assert sorted(rates) == pytest.approx([0.1 * expected, 0.4 * expected])


def decays(decay, steps):
    return [min(decay, (1 + step) / (10 + step)) for step in range(steps)]


def test_average_in_closed_form():
    """After step s: a <- d a + (1 - d) t with d = min(decay, (1 + s) / (10 + s)); what is no float is
    copied.
    """
    states = [dict(w=torch.randn(5, dtype=torch.float64), n=torch.tensor(i)) for i in range(31)]
    average, expected = Average(states[0], 0.7), states[0]['w']
    for step, (state, decay) in enumerate(zip(states[1:], decays(0.7, 30))):
        average.update(state, step)
        expected = decay * expected + (1 - decay) * state['w']
    assert decays(0.7, 30)[0] == 0.1 and decays(0.7, 30)[-1] == 0.7
    torch.testing.assert_close(average.state['w'], expected)
    assert average.state['n'] == 30
    trained = {name: value.clone() for name, value in states[5].items()}
    with swapped(trained, average.state):
        assert trained['w'].equal(average.state['w'])
    assert all(trained[name].equal(states[5][name]) for name in trained)


def test_average_follows_every_step():
    learner = make(ema=0.9)
    expected = {name: value.clone() for name, value in learner.model.trained_state().items()}
    for number, decay in enumerate(decays(0.9, 3)):
        step(learner, batches_of(8, seed=number), number)
        expected = {
            name: decay * expected[name] + (1 - decay) * value
            for name, value in learner.model.trained_state().items()
        }
    for name, value in learner.weights().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('decay', [0.9998, 0.99992, 0.999999])
def test_an_average_of_a_short_run_forgets_the_untrained_start(decay):
    """Of 100 steps, the start keeps a share below a millionth; without a warmup, 98 %."""
    average = Average(dict(w=torch.ones(1, dtype=torch.float64)), decay)
    for number in range(100):
        average.update(dict(w=torch.zeros(1, dtype=torch.float64)), number)
    assert 0 < average.state['w'] < 1e-6


@pytest.mark.parametrize(
    'decay, steps, warns',
    [(0.9998, 100, True), (0.9998, 4999, True), (0.9998, 5000, False), (0.9, 10, False)],
)
def test_an_average_that_reaches_back_beyond_the_run_is_told(decay, steps, warns, capsys):
    make(ema=decay, max_epochs=steps)
    said = capsys.readouterr().err
    assert (
        f'train.ema={decay} averages about 5,000 steps, but the run has {steps:,}: the decay rises' in said
    ) == warns


class Observer(Tuner):
    """Trains the norms, adds the squares of their biases to the loss, and remembers when it was asked."""

    def __init__(self, penalty):
        super().__init__('norm')
        self.heard, self.weight = [], penalty

    def tune(self, site):
        self.thaw(site)

    def on_step(self, progress):
        self.heard.append(progress)

    def penalty(self):
        return self.weight * sum(
            value.square().sum() for name, value in self.trainable() if name.endswith('bias')
        )


@pytest.mark.parametrize('sizes', [(8,), (4, 4)])
def test_penalty_counts_once_a_step(sizes):
    learner, plain = (
        make(Observer(weight), order=Order(8, sizes[0], len(sizes), seed=0)) for weight in (0.25, 0.0)
    )
    before = values(learner)
    for one in (learner, plain):
        step(one, batches_of(*sizes))
    for name, value in before.items():
        extra = (
            0.5 * value if name.endswith('bias') and name.startswith('tuners') else torch.zeros_like(value)
        )
        torch.testing.assert_close(values(plain)[name] - values(learner)[name], extra, rtol=1e-4, atol=1e-5)
    [tuner] = learner.model.tuners
    step(learner, batches_of(*sizes), 9)
    assert tuner.heard == [0.1, 1.0]


@pytest.mark.parametrize('tuner', ['LoRA', 'BitFit'])
def test_frozen_batch_norm_keeps_its_statistics(tuner):
    learner = make(
        tuner if tuner == 'BitFit' else TUNERS.build(dict(type='LoRA', rank=2, at='weight')), 'resnet'
    )
    norms = [module for module in learner.model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [
        (norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone())
        for norm in norms
    ]
    learner.net.train()
    for number in range(2):
        step(learner, batches_of(8), number)
    assert norms and not any(norm.training for norm in norms)
    for norm, kept in zip(norms, before):
        assert all(
            new.equal(old)
            for new, old in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), kept)
        )


OTHER = ('LBFGS', 'SparseAdam')  # which need a closure, and sparse gradients


TIMM = ('adan', 'lamb', 'adafactor', 'adamuon', 'lapropc', 'nadamlegacy')  # of timm, the most unlike


@pytest.mark.parametrize(
    'name',
    [
        name if name in TIMM or not name.islower() else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMIZERS.names()
        if name not in OTHER
    ],
)
def test_every_optimizer_goes_on_exactly(name):
    """State saved after two steps and put into a new learner: the third step is the same."""
    if name == 'Muon':
        pytest.skip('takes matrices only')
    first, second = (make('LoRA', optimizer=dict(type=name, lr=1e-2), ema=0.9) for _ in range(2))
    for number in range(2):
        step(first, batches_of(8), number)
    second.restore(
        {part: {key: value.clone() for key, value in named.items()} for part, named in first.state().items()},
        2,
    )
    for learner in (first, second):
        step(learner, batches_of(8), 2)
    a, b = first.state(), second.state()
    assert {part: set(named) for part, named in a.items()} == {part: set(named) for part, named in b.items()}
    assert all(value.equal(b[part][key]) for part, named in a.items() for key, value in named.items())


@pytest.mark.slow
@pytest.mark.parametrize('mode', [True, 'reduce-overhead'])
def test_compiled_steps_agree(mode, monkeypatch):
    compile, modes = torch.compile, []
    monkeypatch.setattr(torch, 'compile', lambda net, mode: modes.append(mode) or compile(net, mode=mode))
    plain, compiled = (
        make('LoRA', optimizer=dict(type='SGD', lr=0.1, momentum=0.9), compile=on) for on in (False, mode)
    )
    for number in range(3):
        for learner in (plain, compiled):
            step(learner, batches_of(8, seed=number), number)
    for name, value in values(plain).items():
        torch.testing.assert_close(values(compiled)[name], value, rtol=0, atol=1e-5)
    assert modes == [None if mode is True else mode]


def everything_of(model):
    """The attributes of all modules, with the content of their tables of hooks, parameters and modules."""
    held = [
        (path, name, list(value.items()) if isinstance(value, dict) else value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    ]
    return held, [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]


@pytest.mark.parametrize('family', ['vit', 'resnet'])
@pytest.mark.parametrize('mode', ['train', 'eval', 'fresh'])
def test_a_learner_that_is_refused_leaves_the_network_as_it_was(family, mode):
    backbone = tiny(family)
    model = ImageClassifier(backbone, [TUNERS.build(dict(type='Full'))], LinearHead(backbone.num_features, 3))
    if mode != 'fresh':
        model.train(mode == 'train')
    model.head.requires_grad_(False)
    next(iter(model.trainable().values())).requires_grad_(False)
    order = Order(length=8, batch_size=8, accumulate=1, seed=0)
    before = everything_of(model)
    train = Train(max_epochs=1, precision='fp8')
    for _ in range(2):
        with pytest.raises(UserError, match='no linear layer of the backbone fits'):
            Learner(model, train, order, make_accelerator('cpu', 'bf16'))
        assert everything_of(model) == before


def test_a_closed_learner_leaves_no_mark_of_accelerate():
    model = ImageClassifier(tiny('vit'), [TUNERS.build(dict(type='BitFit'))], LinearHead(32, 3))
    names = set(vars(model))
    for _ in range(2):
        accelerator = make_accelerator('cpu', 'bf16')
        learner = Learner(model, Train(max_epochs=1, precision='bf16'), Order(8, 8, 1, 0), accelerator)
        assert 'forward' in vars(model)  # accelerate has wrapped the model
        learner.close()
        assert set(vars(model)) == names


def test_a_forward_of_the_users_own_is_there_again_after_training():
    model = ImageClassifier(tiny('vit'), [TUNERS.build(dict(type='BitFit'))], LinearHead(32, 3))
    model.forward = own = lambda images: ImageClassifier.forward(model, images)
    learner = Learner(
        model, Train(max_epochs=1, precision='bf16'), Order(8, 8, 1, 0), make_accelerator('cpu', 'bf16')
    )
    learner.close()
    assert vars(model)['forward'] is own
