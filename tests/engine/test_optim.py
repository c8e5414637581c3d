"""Optimizers by name, their ranges, and their groups: the learning rate and weight decay of each parameter."""

import copy
import sys

import peft
import pytest
import schedulefree
import timm.optim
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from tests.engine.runs import ended, ended_after_a_break, small
from tests.engine.two_processes import RESNET
from tests.nets import images, tiny
from vet.config import Schedule, Train
from vet.config.sections import ParameterGroup
from vet.core.model import ImageClassifier
from vet.engine.device import make_accelerator
from vet.engine.feed.batches import Batch, Order
from vet.engine.learner import Learner
from vet.engine.meter import Meter
from vet.engine.optim import build_optimizer, layer_factors, rules_of
from vet.errors import UserError
from vet.heads.linear import LinearHead
from vet.registry import OPTIMIZERS, TUNERS


@pytest.mark.parametrize('name, largest', [('t0', 1e6), ('lambd', 1.0), ('lr', None)])
def test_numbers_have_a_largest_value(name, largest):
    weights = [nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight))]
    if largest is not None:
        OPTIMIZERS.build(dict(type='ASGD', **{name: largest}), weights)
    with pytest.raises(UserError, match=f'{name} '):
        OPTIMIZERS.build(dict(type='ASGD', **{name: (largest or 1e9) * 1.5}), weights)


def test_adagrad_starts_from_at_most_a_million():
    weights = [nn.Parameter(nn.Linear(1, 1).weight.detach())]
    OPTIMIZERS.build(dict(type='Adagrad', initial_accumulator_value=1e6), weights)
    with pytest.raises(UserError, match='initial_accumulator_value'):
        OPTIMIZERS.build(dict(type='Adagrad', initial_accumulator_value=1.5e6), weights)


@pytest.mark.parametrize('name', ['lion', 'adan', 'lambw', 'sgdw', 'adamuon', 'adafactorbvc'])
def test_an_optimizer_of_timm_takes_timms_steps(name):
    """Those of timm.optim.create_optimizer_v2, with its defaults."""
    ends = []
    for make in (
        lambda net: build_optimizer(dict(type=name, lr=0.01, weight_decay=0.1), dict(net.named_parameters())),
        lambda net: timm.optim.create_optimizer_v2(net, name, lr=0.01, weight_decay=0.1),
    ):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(5, 4)
        optimizer = make(net)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([parameter.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)  # lambw sums norms in the order of its groups


@pytest.mark.parametrize('name', ['kron', 'adahessian', 'bnbadam', 'adamw'])
def test_optimizers_that_vet_leaves_out_are_unknown(name):
    with pytest.raises(UserError, match=f'unknown optimizer {name!r}'):
        OPTIMIZERS.require(name)


def test_the_parameters_that_an_optimizer_does_not_take_are_named():
    """torch's Muon takes matrices alone."""
    named = model_of('vit', 'LoRA').trainable()
    vectors = [name for name, parameter in named.items() if parameter.ndim != 2]
    assert vectors == ['head.fc.bias']
    with pytest.raises(UserError) as refused:
        build_optimizer(dict(type='Muon', lr=0.02), named)
    wanted = f"'Muon' does not take 1 of the {len(named)} parameters that train, such as 'head.fc.bias' with"
    assert wanted in str(refused.value) and 'Choose another optimizer' in str(refused.value)
    matrices = {name: parameter for name, parameter in named.items() if parameter.ndim == 2}
    assert build_optimizer(dict(type='Muon', lr=0.02), matrices).param_groups


@pytest.mark.parametrize('error', [RuntimeError('no luck'), AssertionError('no luck'), TypeError('no luck')])
def test_an_optimizer_of_a_user_that_fails_at_its_start_is_named(error, monkeypatch):
    def fails(params, lr):
        raise error

    monkeypatch.setitem(OPTIMIZERS.module_dict, 'Fails', fails)
    with pytest.raises(UserError, match="the optimizer 'Fails' .*no luck"):
        build_optimizer(dict(type='Fails', lr=0.1), dict(nn.Linear(2, 2).named_parameters()))


def model_of(family='vit', *tuners):
    backbone = tiny(family)
    tuners = [TUNERS.build(dict(type=name)) for name in tuners or ('Full',)]
    return ImageClassifier(backbone, tuners, LinearHead(backbone.num_features, 3), ['a', 'b', 'c'])


def groups_of(model, optimizer=None, head_lr=None, **train):
    """{parameter: (learning rate, weight decay)} as the optimizer has them."""
    settings = Train(**train)
    rules, named = rules_of(model, settings), model.trainable()
    built = build_optimizer(optimizer or dict(type='AdamW', lr=1.0, weight_decay=0.5), named, head_lr, rules)
    names = {parameter: name for name, parameter in named.items()}
    return {
        names[parameter]: (group['lr'], group['weight_decay'])
        for group in built.param_groups
        for parameter in group['params']
    }


def test_a_pattern_gives_a_learning_rate_and_a_weight_decay():
    found = groups_of(
        model_of('vit', 'LoRA'),
        head_lr=2.0,
        groups=[
            ParameterGroup(r'.*\.B', lr_factor=16.0),
            ParameterGroup(r'head\..*', lr_factor=0.5, weight_decay=0.25),
            ParameterGroup('.*', lr_factor=3.0),  # for the parameters that no earlier pattern fits
        ],
    )
    wanted = {'A': (3.0, 0.5), 'B': (16.0, 0.5)}
    assert all(found[name] == wanted[name[-1]] for name in found if not name.startswith('head'))
    assert {found[name] for name in found if name.startswith('head')} == {(1.0, 0.25)}


def test_a_factor_for_B_is_lora_plus_of_peft():
    model = model_of('vit', 'LoRA')
    found = groups_of(model, groups=[ParameterGroup(r'.*\.B', lr_factor=16.0)])
    theirs = peft.get_peft_model(copy.deepcopy(tiny('vit').network), peft.LoraConfig(target_modules=['qkv']))
    built = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=16)
    rates = {parameter: group['lr'] for group in built.param_groups for parameter in group['params']}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            path, _, factor = name.removeprefix('base_model.model.').partition('.lora_')
            assert found[f'tuners.0.deltas.{path}.{factor[0]}'][0] == rates[parameter]
    assert set(rates.values()) == {1.0, 16.0}


def test_without_groups_every_parameter_trains_as_usual():
    assert rules_of(model_of(), Train()) == {}


@pytest.mark.parametrize(
    'train, text',
    [
        (
            dict(groups=[ParameterGroup(r'haed\..*')]),
            r"train\.groups\[0\]\.params is 'haed.*fits none of the",
        ),
        (
            dict(optimizer=dict(type='Rprop'), groups=[ParameterGroup('.*', weight_decay=0.1)]),
            "'Rprop' has none",
        ),
    ],
)
def test_groups_that_change_nothing_are_refused(train, text):
    with pytest.raises(UserError, match=text):
        groups_of(model_of(), **train)


@pytest.mark.parametrize('family', ['vit', 'convnext', 'swin'])
def test_layer_decay_falls_from_block_to_block(family):
    model = model_of(family)
    found = {name: lr for name, (lr, _) in groups_of(model, layer_decay=0.5).items()}
    blocks = model.backbone.sites.blocks
    for depth, block in enumerate(blocks):
        own = {lr for name, lr in found.items() if name.startswith(f'tuners.0.thawed.{block}.')}
        assert own == {0.5 ** (len(blocks) - depth)}
    assert found['head.fc.weight'] == 1.0
    assert min(found.values()) == 0.5 ** (len(blocks) + 1)  # the stem


def test_layer_decay_is_timms_except_for_the_last_norm():
    model = model_of('vit')
    network = model.backbone.network
    factors = layer_factors(model, 0.75)
    groups = timm.optim._param_groups.param_groups_layer_decay(network, layer_decay=0.75)
    for group in groups:
        for parameter in group['params']:
            name = next(name for name, own in network.named_parameters() if own is parameter)
            # without a classifier, timm's last layer is the last block
            wanted = 1.0 if name.startswith('norm') else group['lr_scale'] * 0.75
            assert factors[parameter] == pytest.approx(wanted), name


def test_layer_decay_of_deltas_is_that_of_their_sites():
    model = model_of('vit', 'LoRA', 'VPT')
    found = {name: lr for name, (lr, _) in groups_of(model, layer_decay=0.5).items()}
    of_block = {name: lr for name, lr in found.items() if '.blocks.1.' in name}
    assert len(of_block) > 2 and set(of_block.values()) == {0.25}


def test_layer_decay_needs_blocks():
    model = model_of('vit', 'BitFit')
    model.backbone.sites.blocks = []
    with pytest.raises(UserError, match=r'train\.layer_decay is 0\.5, but .* has no blocks'):
        rules_of(model, Train(layer_decay=0.5))


STATEFUL = {
    'train.optimizer': dict(type='lambw', lr=1e-2, weight_decay=0.1),  # counts its steps in the groups
    'train.layer_decay': 0.7,
    'train.groups': [dict(params=r'.*\.B', lr_factor=4.0)],
    'train.checkpoint.every_steps': 1,
}


@pytest.mark.slow
def test_a_run_with_groups_goes_on_exactly(tmp_path):
    whole = ended(small(tmp_path / 'whole', **STATEFUL))
    broken = ended_after_a_break(lambda resume: small(tmp_path / 'broken', resume, **STATEFUL), 5)
    assert whole == broken
    plain = ended(small(tmp_path / 'plain', **STATEFUL | {'train.layer_decay': None}))
    assert plain['tensors'] != whole['tensors']
    assert [line.get('lr') for line in plain['curves']] == [line.get('lr') for line in whole['curves']]


SAM = {'train.sam': 0.1, 'train.accumulate': 2, 'train.clip_norm': 1.0, 'train.ema': 0.5}
FREE = {
    'train.optimizer': dict(type='AdamWScheduleFree', lr=1e-2, weight_decay=0.1),
    'train.lr_scheduler': dict(type='ConstantLR', warmup_epochs=0.5),
}
EVERY_STEP = {'train.checkpoint.every_steps': 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [pytest.param(SAM, marks=pytest.mark.slow), pytest.param(FREE, marks=pytest.mark.slow), FREE | SAM],
    ids=['sam', 'schedule-free', 'both'],
)
def test_sam_and_schedule_free_go_on_exactly(options, tmp_path):
    options = options | EVERY_STEP
    whole = ended(small(tmp_path / 'whole', **options))
    at = 3 if 'train.accumulate' in options else 5
    assert whole == ended_after_a_break(lambda resume: small(tmp_path / 'broken', resume, **options), at)
    assert whole['accuracy'] > 0.25


@pytest.mark.parametrize(
    'name, options',
    [
        ('AdamWScheduleFree', dict(lr=0.01, eps=1e-3)),  # the bias of the keys has only noise as gradient
        ('RAdamScheduleFree', dict(lr=0.01, eps=1e-3)),
        ('SGDScheduleFree', dict(lr=0.5)),
    ],
)
def test_schedule_free_weights_are_those_of_the_package(name, options):
    """The package's own loop, which changes between train and eval only at the end."""
    x, y = images(8), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
    mine, other = (model_of('vit', 'BitFit') for _ in range(2))
    other.load_trained_state(mine.trained_state())
    constant = Schedule('ConstantLR', T_max=10)
    settings = Train(optimizer=dict(type=name, **options), lr_scheduler=constant, max_epochs=10)
    learner = Learner(mine, settings, Order(8, 8, 1, seed=0), make_accelerator('cpu', 'fp32'))
    optimizer = getattr(schedulefree, name)(list(other.trainable().values()), **options)
    optimizer.train()
    for number in range(6):
        learner.step([Batch(x, y, torch.ones(8))], number, Meter(torch.device('cpu')))
        optimizer.zero_grad()
        nn.functional.cross_entropy(other.train()(x), y).backward()
        optimizer.step()
    optimizer.eval()
    learner.close()
    wanted = other.trained_state()
    for key, value in mine.trained_state().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'options, text',
    [
        (
            {'train.lr_scheduler': {}},
            "'AdamWScheduleFree' needs no falling.*is 'CosineAnnealingLR'.*ConstantLR",
        ),
        (
            {'model.backbone': RESNET, 'model.tuners': [dict(type='Full')]},
            'Running statistics such as .* fit only the weights of the steps',
        ),
    ],
)
def test_what_does_not_fit_a_schedule_free_optimizer_is_refused(options, text, tmp_path):
    with pytest.raises(UserError, match=text):
        small(tmp_path / 'run', **FREE | options).train()


def test_sam_and_replayed_graphs_are_refused(tmp_path):
    with pytest.raises(UserError, match='replays CUDA graphs, but train.sam computes two gradients'):
        small(tmp_path / 'run', **{'train.sam': 0.05, 'train.compile': 'reduce-overhead'})


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'schedulefree', None)
    with pytest.raises(UserError, match=r"'SGDScheduleFree' needs the package.*\[schedulefree\]"):
        OPTIMIZERS.build(dict(type='SGDScheduleFree'), params=[nn.Parameter(torch.ones(1))])
