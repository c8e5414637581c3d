"""Routes of low-rank updates: measured once, kept for the machine and for the run, and equal in their results.

No test depends on a time: a test says how long each route takes.
"""

import json
import math

import pytest
import torch
from torch import nn

from tests.contract.runs import leftovers, with_head
from tests.engine.runs import ended, ended_after_a_break, small
from tests.nets import tiny
from vet.config import Train
from vet.core import routes as core_routes
from vet.core.routes import ROUTES, chosen_route
from vet.engine.device import make_accelerator
from vet.engine.fast import routes
from vet.engine.fast.door import Tricks
from vet.engine.fast.routes import Routes
from vet.engine.saving.checkpoint import list_checkpoints
from vet.registry import TUNERS

LORA = dict(type='LoRA', rank=2, at='weight')


@pytest.fixture
def timed(monkeypatch):
    """timed(fused=…, split=…, plain=…) says the seconds of the routes. Gives the list of what was timed."""
    calls = []

    def say(**seconds):
        def timing(self, layer, x, trained):
            route = chosen_route(layer)
            calls.append((layer, tuple(x.shape), route))
            measure(self, layer, x, trained)
            return seconds[route]

        monkeypatch.setattr(Routes, '_timed', timing)
        calls.clear()
        return calls

    measure = Routes._timed
    return say


def model(*tuners, family='vit'):
    return with_head(tiny(family), [TUNERS.build(tuner) for tuner in tuners or [LORA]]).train()


def chosen(network, precision='fp32', images=2, **train):
    """The routes after a first step of the network."""
    accelerator = make_accelerator('cpu', precision)
    found = Routes(network, Train(precision=precision, **train), accelerator)
    if found.taken is None:
        with found.noted(), accelerator.autocast():
            network(torch.randn(images, 3, 32, 32))
        found.take(found.measured())
    return found


def test_the_fastest_route_is_taken_and_each_kind_is_timed_once(timed):
    calls = timed(fused=3.0, split=2.0, plain=1.0)
    found = chosen(model())
    assert len(found.taken) == 3 * 4 and set(found.taken.values()) == {'plain'}
    assert found.told() == 'plain at 12'
    kinds = {(shape, layer.out_features) for layer, shape, _ in calls}
    assert len(kinds) == len({layer for layer, _, _ in calls}) == 4
    assert {route for _, _, route in calls} == {'fused', 'split', 'plain'}


@pytest.mark.parametrize('precision, routes', [('fp32', set(ROUTES)), ('bf16', set(ROUTES) - {'fused'})])
def test_a_convolution_has_one_more_route(timed, precision, routes):
    calls = timed(fused=3.0, split=2.0, convolved=1.0, plain=2.0)
    found = chosen(model(family='resnet'), precision)
    of = {route for layer, _, route in calls if isinstance(layer, nn.Conv2d)}
    assert of == routes and set(found.taken.values()) == {'convolved'}


def test_a_gain_within_the_noise_leaves_the_rule(timed):
    timed(fused=1.0, split=1.0, plain=0.98)
    few = chosen(model(), images=1)  # 17 positions, 32 columns or more
    assert set(few.taken.values()) == {'split'}
    assert set(chosen(model(), images=64).taken.values()) == {'fused'}


def test_bf16_never_fuses(timed):
    calls = timed(split=2.0, plain=1.0)
    assert set(chosen(model(), 'bf16').taken.values()) == {'plain'}
    assert {route for _, _, route in calls} == {'split', 'plain'}


def test_the_next_run_of_the_machine_reads_the_choice(timed, cache):
    timed(fused=3.0, split=2.0, plain=1.0)
    first = chosen(model()).taken
    calls = timed(fused=1.0, split=2.0, plain=3.0)
    assert chosen(model()).taken == first and not calls
    [path] = (cache / 'routes').glob('*.json')
    kept = json.loads(path.read_text())
    assert kept['machine']['torch'] == torch.__version__ and len(kept['kinds']) == 4
    assert all(one['milliseconds']['plain'] == 1000 for one in kept['kinds'].values())
    path.write_text('{"kinds": {"x": 3')
    assert set(chosen(model()).taken.values()) == {'fused'} and calls


def test_other_threads_are_another_machine(timed, cache):
    timed(fused=3.0, split=2.0, plain=1.0)
    chosen(model())
    torch.set_num_threads(2)
    try:
        chosen(model())
    finally:
        torch.set_num_threads(1)
    assert len(list((cache / 'routes').glob('*.json'))) == 2


def test_a_faster_process_decides_for_both(timed, cache, monkeypatch):
    timed(fused=3.0, split=2.0, plain=1.0)
    first = chosen(model()).taken
    timed(fused=1.0, split=2.0, plain=3.0)
    read = routes._read
    answers = [{}]  # the other process had not written yet when this process looked
    monkeypatch.setattr(routes, '_read', lambda path: answers.pop() if answers else read(path))
    assert chosen(model()).taken == first


def test_a_cache_folder_that_cannot_be_used_costs_a_measurement(timed, cache, capsys):
    timed(fused=3.0, split=2.0, plain=1.0)
    cache.write_text('')
    assert set(chosen(model()).taken.values()) == {'plain'}
    assert 'measured again in the next run' in capsys.readouterr().err


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(routes='rule'), set()),
        (dict(deterministic=True), set()),
        (dict(compile=True), set()),
        (dict(routes='plain'), {'plain'}),
        (dict(routes='fused', deterministic=True), {'fused'}),
    ],
    ids=str,
)
def test_settings_that_measure_nothing(settings, expected, timed):
    calls = timed()
    assert set(chosen(model(), **settings).taken.values()) == expected and not calls


@pytest.mark.parametrize('tuner', ['SSF', 'BitFit', 'Adapter', 'DoRA'])
def test_tuners_without_routes_are_not_timed(tuner, timed):
    calls = timed()
    config = dict(type='LoRA', variant='dora') if tuner == 'DoRA' else dict(type=tuner)
    assert chosen(model(config)).taken == {} and not calls


def test_measuring_leaves_no_trace(timed):
    timed(fused=3.0, split=2.0, plain=1.0)
    network = model(LORA | dict(dropout=0.5))
    tricks = Tricks(network, Train(precision='fp32'), make_accelerator('cpu', 'fp32'))
    frozen = network.tuners[0].deltas['blocks/0/attn/qkv'].A.requires_grad_(False)
    marked = leftovers(network)
    with tricks.while_training():
        with tricks.in_a_step():
            network(torch.randn(2, 3, 32, 32))
        state = torch.get_rng_state()
        tricks.routes.take(tricks.routes.measured())
        assert torch.equal(state, torch.get_rng_state())
        assert all(parameter.grad is None for parameter in network.parameters()) and not frozen.requires_grad
        layer = network.backbone.network.blocks[0].attn.qkv
        assert chosen_route(layer) == 'plain'
        with torch.no_grad():
            assert chosen_route(layer) is None  # an evaluation takes the rule
    assert chosen_route(layer) is None and leftovers(network) == marked
    assert core_routes.KEY not in layer.__dict__


TUNED = [
    [LORA],
    [LORA | dict(dropout=0.5)],
    [LORA | dict(variant='pissa')],
    [LORA | dict(variant='vera')],
    [LORA, dict(type='LoHa', rank=1, at='weight')],
    [dict(type='AdaLoRA', at='weight')],
]


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('family', ['vit', 'resnet'])
@pytest.mark.parametrize('tuners', TUNED, ids=str)
def test_every_route_gives_the_same_gradients(tuners, family, precision):
    network = model(*tuners, family=family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 32, 32)
    accelerator = make_accelerator('cpu', precision)
    found = {}
    for route in ('rule', *ROUTES):
        torch.manual_seed(2)
        taken = Routes(network, Train(precision=precision, routes=route), accelerator)
        with taken.in_training(), accelerator.autocast():
            loss = network(x).float().square().mean()
        trained = network.trainable()
        gradients = torch.autograd.grad(loss, list(trained.values()))
        found[route] = torch.cat([gradient.flatten() for gradient in (loss, *gradients)])
    bound = 1e-4 if precision == 'fp32' else 0.05
    for route in ROUTES:
        difference = (found[route] - found['plain']).norm() / found['plain'].norm()
        assert difference < bound, (route, difference)


def test_a_resumed_run_takes_the_routes_of_its_checkpoint(tmp_path, cache, timed, monkeypatch):
    timed(fused=3.0, split=2.0, plain=1.0)
    unbroken = small(tmp_path / 'unbroken')
    expected = ended(unbroken)
    newest = list_checkpoints(unbroken.folder.path / 'checkpoints')[-1]
    kept = json.loads((newest / 'progress.json').read_text())['routes']
    assert kept and set(kept.values()) == {'plain'}

    def make(resume):
        if resume:  # by now, other routes are faster
            monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'other'))
            timed(fused=1.0, split=2.0, plain=math.inf)
        return small(tmp_path / 'broken', resume)

    assert ended_after_a_break(make, 5) == expected
    pinned = small(tmp_path / 'pinned', **{'train.routes': 'plain'})
    assert pinned.train()['accuracy'] == expected['accuracy']


def test_a_file_of_an_older_vet_is_read(timed, cache):
    timed(fused=1.0, split=2.0, plain=3.0)
    first = chosen(model(), images=64).taken
    [path] = (cache / 'routes').glob('*.json')
    assert json.loads(path.read_text())['machine']['routes'][0] == 'merged'  # so the name stays the same
    path.write_text(path.read_text().replace('fused', 'merged'))
    calls = timed(fused=3.0, split=1.0, plain=1.0)
    assert chosen(model(), images=64).taken == first and set(first.values()) == {'fused'} and not calls


def test_a_run_with_the_names_of_an_older_vet_continues(tmp_path, cache, timed):
    options = {'train.routes': 'fused', 'train.shortcuts': False}
    expected = ended(small(tmp_path / 'unbroken', **options))

    def make(resume):
        if resume:
            config = json.loads((tmp_path / 'run/config.json').read_text())
            config['train'] |= dict(routes='merged', lean=config['train'].pop('shortcuts'))
            (tmp_path / 'run/config.json').write_text(json.dumps(config))
            for path in list_checkpoints(tmp_path / 'run/checkpoints'):
                progress = json.loads((path / 'progress.json').read_text())
                assert set(progress['routes'].values()) == {'fused'}
                progress['routes'] = dict.fromkeys(progress['routes'], 'merged')
                (path / 'progress.json').write_text(json.dumps(progress | dict(format=0)))
            return small(tmp_path / 'run', resume, **{'train.routes': 'merged', 'train.lean': False})
        return small(tmp_path / 'run', resume, **options)

    assert ended_after_a_break(make, 5) == expected


def test_a_run_of_an_older_vet_takes_the_rule(tmp_path, timed):
    rule = ended(small(tmp_path / 'rule', **{'train.routes': 'rule'}))
    calls = timed(fused=3.0, split=2.0, plain=1.0)

    def make(resume):
        if resume:
            once.undo()
            for path in list_checkpoints(tmp_path / 'run' / 'checkpoints'):
                progress = json.loads((path / 'progress.json').read_text())
                del progress['routes']
                (path / 'progress.json').write_text(json.dumps(progress | dict(format=0)))
        return small(tmp_path / 'run', resume)

    with pytest.MonkeyPatch.context() as once:
        once.setattr(Routes, 'measured', lambda self: {})
        assert ended_after_a_break(make, 5) == rule and not calls
