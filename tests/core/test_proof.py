"""A tuner that attaches has proved that its network runs; one that cannot is refused and taken back whole."""

import pytest
import torch
from torch import nn

from tests.contract.runs import differing, leftovers, logits, snapshot, with_head
from tests.nets import images, randomised, timm_net, tiny
from vet.backbones.roles import find_layout
from vet.core import proof
from vet.core import tuner as core_tuner
from vet.core.backbone import Backbone, Preprocessing
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


class Places(Tuner):
    """Places deltas of a test before, after, or on the weights of its sites."""

    def __init__(self, at: str = 'block', before=None, after=None, reweight=None):
        super().__init__(at)
        self.made = before, after, reweight

    def tune(self, site: Site) -> None:
        for edit, make in zip((self.before, self.after, self.reweight), self.made):
            if make is not None:
                edit(site, make(site))


class Twice(nn.Module):
    """More channels than the next layer takes."""

    def __init__(self, site: Site):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([x if y is None else y] * 2, -1) * self.scale


class Transposed(Twice):
    def forward(self, weight, bias):
        return weight.transpose(0, 1) * self.scale, bias


class Overwrites(nn.Module):
    def __init__(self, site: Site):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        kept = (y * self.scale).exp()
        result = kept * 2
        kept.zero_()  # the gradient of exp() needs what exp() gave
        return result


BROKEN = {
    'before': dict(before=Twice),
    'after': dict(after=Twice),
    'reweight': dict(at='mlp.fc1', reweight=Transposed),
    'backward': dict(after=Overwrites),
    'features': dict(at='backbone', after=Twice),
}


class Counts(nn.Module):
    """A stage that needs numbers: the meta device has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 if x.abs().max().item() < 1e9 else 0)


def with_numbers(family: str) -> Backbone:
    network = tiny(family).network
    network.norm = nn.Sequential(network.norm, Counts())
    return Backbone(
        network, find_layout(network), Preprocessing(size=(32, 32)), dict(type='test', name='counts')
    )


ROUTES = {  # a network, and above how many products for each module it runs on the meta device
    'on the meta device': (tiny, 0),
    'on an image': (tiny, 1e12),
    'on an image, since it needs numbers': (with_numbers, 0),
}


def state_of(backbone: Backbone) -> tuple:
    """All that a proof must leave alone."""
    return (
        torch.get_rng_state(),
        [module.training for module in backbone.modules()],
        [{name for name in vars(module)} for module in backbone.network.modules()],
        [(p.requires_grad, p.grad is None or p.grad.clone()) for p in backbone.network.parameters()],
        [id(tensor) for tensor in (*backbone.network.parameters(), *backbone.network.buffers())],
    )


def same(one: tuple, other: tuple) -> bool:
    grads = all(
        a[0] == b[0] and (torch.equal(a[1], b[1]) if isinstance(a[1], torch.Tensor) else a[1] == b[1])
        for a, b in zip(one[3], other[3])
    )
    return torch.equal(one[0], other[0]) and grads and one[1:3] == other[1:3] and one[4] == other[4]


@pytest.mark.parametrize('net, small', ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize('broken', BROKEN)
def test_a_tuner_that_cannot_run_is_refused_and_taken_back(net, small, broken, monkeypatch):
    monkeypatch.setattr(proof, 'SMALL', small)
    backbone = net('vit').train()
    backbone.network.blocks[0].norm1.weight.grad = torch.ones(32)
    x, state = images(2), snapshot(backbone.network)
    frozen, before = logits(backbone, x), state_of(backbone)
    tuner = Places(**BROKEN[broken])
    with pytest.raises(
        NoSiteError,
        match=r"Places at '.*' cannot act on .* does not run on an image of \(32, 32\) \(\w+Error: ",
    ) as told:
        tuner.attach(backbone)
    assert told.value.__cause__ is not None
    assert same(state_of(backbone), before) and not leftovers(backbone.network)
    assert not differing(snapshot(backbone.network), state)
    assert torch.equal(logits(backbone, x), frozen)
    assert not list(tuner.trainable()) and tuner.backbone is None


@pytest.mark.parametrize('type', ['LoRA', 'VPT', 'Adapter', 'SSF', 'AdapterPlus', 'LadderSide', 'Prefix'])
@pytest.mark.parametrize('net, small', ROUTES.values(), ids=ROUTES)
def test_a_proof_leaves_everything_alone(net, small, type, monkeypatch):
    monkeypatch.setattr(proof, 'SMALL', small)
    backbone = net('vit').train()
    backbone.network.blocks[0].norm1.weight.grad = torch.ones(32)
    before, states = state_of(backbone), []

    def watched(*args):  # the tuner draws random numbers and hooks modules: compare around the proof alone
        states.append(state_of(backbone))
        unwatched(*args)
        states.append(state_of(backbone))

    unwatched = core_tuner.prove
    monkeypatch.setattr(core_tuner, 'prove', watched)
    tuner = TUNERS.build(dict(type=type))
    tuner.attach(backbone)
    assert len(states) == 2 and same(*states)
    assert all(parameter.grad is None and not parameter.is_meta for parameter in tuner.deltas.parameters())
    tuner.detach()
    assert before[1:3] == state_of(backbone)[1:3]


@pytest.mark.parametrize('small, device', [(0, 'meta'), (1e12, 'cpu')])
def test_a_large_network_runs_without_numbers(small, device, monkeypatch):
    seen = []

    class Watches(Twice):
        def forward(self, x, y):
            seen.append((str(y.device), y.shape[0]))
            return y * self.scale

    monkeypatch.setattr(proof, 'SMALL', small)
    Places(at='blocks.1', after=Watches).attach(tiny('vit'))
    assert seen == [(device, 2 if device == 'meta' else 1)]


def test_statistics_of_batch_norms_that_train_stay():
    backbone = tiny('resnet').train()
    Tuner.attach(full := TUNERS.build(dict(type='Full')), backbone)
    backbone.train()
    state = snapshot(backbone.network)
    assert any(isinstance(m, nn.BatchNorm2d) and m.training for m in backbone.network.modules())
    TUNERS.build(dict(type='AdapterPlus')).attach(backbone)
    assert not differing(snapshot(backbone.network), state)
    assert any(isinstance(m, nn.BatchNorm2d) and m.training for m in backbone.network.modules())
    assert full.backbone is backbone


def test_a_batch_norm_that_trains_on_one_number_per_image_is_no_fault():
    """A single image has one number in each channel there, a batch of two has two."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8)
    )
    backbone = Backbone(
        network, find_layout(network), Preprocessing(size=(32, 32)), dict(type='test', name='plain')
    )
    TUNERS.build(dict(type='NormTune')).attach(backbone)
    TUNERS.build(dict(type='Adapter', at='4')).attach(backbone)


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize(
    'net, text',
    [
        (
            lambda: timm_net(
                'pvt_v2_b0', 64, depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 32), num_heads=(1, 2, 2, 4)
            ),
            r"VPT at 'block' cannot act on pvt_v2_b0 .*does not run on an image of \(64, 64\)",
        ),
        (
            lambda: timm_net(
                'tnt_s_patch16_224', img_size=32, embed_dim=32, inner_dim=8, depth=2, num_heads_outer=4
            ),
            r"VPT needs tokens \(N, C\) under attention .*'blocks\.0' \(Block, which takes \(16, 8\)",
        ),
    ],
    ids=['pvt_v2', 'tnt'],
)
def test_vpt_is_refused_where_tokens_must_be_a_map_or_lie_within_patches(net, text, depth):
    backbone = randomised(net()).eval()
    x = images(2, backbone.preprocessing.size[0])
    frozen = logits(backbone, x)
    with pytest.raises(UserError, match=text):
        TUNERS.build(dict(type='VPT', depth=depth)).attach(backbone)
    assert torch.equal(logits(backbone, x), frozen) and not leftovers(backbone.network)


def test_the_second_tuner_is_proved_beside_the_first():
    backbone = tiny('vit')
    first = TUNERS.build(dict(type='VPT', length=3))
    first.attach(backbone)

    class TakesAll(nn.Module):
        def __init__(self, tokens: int):
            super().__init__()
            self.places = nn.Parameter(torch.zeros(tokens, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.places

    with pytest.raises(NoSiteError, match=r'cannot act on .*RuntimeError'):
        Places('mlp', before=lambda site: TakesAll(17)).attach(backbone)
    second = Places('mlp', before=lambda site: TakesAll(20))
    second.attach(backbone)
    assert logits(with_head(backbone, [])).shape == (6, 3)
