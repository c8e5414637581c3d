"""Modules that keep tensors which they computed from parameters: what they keep never outlives the parameters.

timm's LeViT, TinyViT, EfficientFormer and their like keep attention biases in eval mode. Their `train()` forgets the
biases. A stranger's module may keep whatever it likes, and forget nothing.
"""

import copy

import pytest
import torch
from torch import nn

from tests.contract.runs import differing, logits, snapshot, with_head
from tests.nets import images, randomised, timm_net
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.caches import caches_discarded
from vet.core.modes import in_eval
from vet.core.site import Site
from vet.core.tuned_model import TunedModel, with_same_weights
from vet.core.tuner import Tuner
from vet.registry import TUNERS


class Hooked(nn.Linear):
    """A layer that notes in its first forward that the forward ran. With `hooks`, that forward also adds a hook."""

    def __init__(self, hooks: bool):
        super().__init__(2, 2)
        self.hooks = hooks
        self.ran = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.hooks and not self.ran:
            self.register_forward_hook(lambda *_: None)
        self.ran = True
        return super().forward(x)


@pytest.mark.parametrize('hooks', [True, False])
def test_a_flag_that_says_that_hooks_are_there_stays_with_them(hooks):
    layer = Hooked(hooks)
    with caches_discarded([layer]):
        layer(torch.ones(1, 2))
    assert layer.ran == hooks
    layer(torch.ones(1, 2))
    assert len(layer._forward_hooks) == hooks


class Kept(nn.Module):
    """Tokens (B, N, C), plus a bias that is computed from a parameter, and kept in eval mode."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(8)
        self.table = nn.Parameter(torch.randn(1, 8))
        self.by_size: dict = {}
        self.all: list = []
        self.bias = None
        self.is_ready = False
        self.register_buffer('late', None, persistent=False)
        self.register_buffer('filled', torch.zeros(1, 8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) + getattr(self, self.how)(x.shape[1])

    def fresh(self) -> torch.Tensor:
        return self.table.exp()

    def dict_of_dicts(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        return self.by_size.setdefault('cpu', {}).setdefault(size, self.fresh().detach())

    def list(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        if not self.all:
            self.all.append(self.fresh().detach())
        return self.all[0]

    def attribute(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        if self.bias is None:
            self.bias = self.fresh().detach()
        return self.bias

    def new_attribute(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        if not hasattr(self, 'made'):
            self.made = self.fresh().detach()
        return self.made

    def buffer(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        if self.late is None:
            self.late = self.fresh().detach()
        return self.late

    def filled_buffer(self, size: int) -> torch.Tensor:
        if self.training:
            return self.fresh()
        if not self.is_ready:
            self.filled.copy_(self.fresh().detach())
            self.is_ready = True
        return self.filled


class KeptBlock(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.fc, self.kept = nn.Linear(8, 8), Kept(how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(self.kept(x))


class Net(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 8, 8), nn.Sequential(KeptBlock(how), KeptBlock(how))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1)


def stranger(how: str) -> Backbone:
    torch.manual_seed(0)
    network = Net(how)
    return Backbone(network, find_layout(network), Preprocessing(size=(32, 32)), dict(type='test', name=how))


NETS = {
    'tiny_vit': lambda: timm_net(
        'tiny_vit_5m_224',
        64,
        embed_dims=(16, 16, 32, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_sizes=(4, 4, 4, 2),
    ),
    'levit': lambda: timm_net(
        'levit_128s', img_size=64, embed_dim=(16, 32, 32), key_dim=8, depth=(1, 1, 1), num_heads=(1, 2, 2)
    ),
    'efficientformer': lambda: timm_net(
        'efficientformer_l1', depths=(1, 1, 1, 2), embed_dims=(8, 16, 16, 32)
    ),
    'efficientformer_v2': lambda: timm_net(
        'efficientformerv2_s0', img_size=64, depths=(1, 1, 2, 2), embed_dims=(8, 16, 16, 32), num_vit=1
    ),
    'efficientvit_msra': lambda: timm_net(
        'efficientvit_m0', img_size=64, embed_dim=(16, 32, 32), key_dim=(8, 8, 8), depth=(1, 1, 1)
    ),
    **{
        how: lambda how=how: stranger(how)
        for how in ('dict_of_dicts', 'list', 'attribute', 'new_attribute', 'buffer', 'filled_buffer')
    },
}


class Biases(Tuner):
    """Trains what the kept tensors are computed from."""

    identity_at_start = True

    def __init__(self) -> None:
        super().__init__('backbone')

    def tune(self, site: Site) -> None:
        self.thaw(site, r'.*(attention_biases|table)')


def shifted(tuner: Tuner) -> None:
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.add_(torch.randn_like(parameter))


def computed_anew(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    """The features of a copy that has kept nothing."""
    fresh = copy.deepcopy(backbone.network)
    for module in fresh.modules():
        for name in ('attention_bias_cache', 'by_size'):
            if name in vars(module):
                setattr(module, name, {})
        if isinstance(module, Kept):
            module.all, module.bias, module.is_ready, module.late = [], None, False, None
            vars(module).pop('made', None)
    with torch.no_grad():
        return fresh.eval()(x)


@pytest.mark.parametrize('net', NETS)
def test_every_change_of_parameters_is_seen_in_eval(net):
    backbone = randomised(NETS[net]()).eval()
    x = images(2, backbone.preprocessing.size[0])
    frozen, state = logits(backbone, x), snapshot(backbone.network)
    tuner = Biases()
    tuner.attach(backbone)
    assert torch.equal(logits(backbone, x), frozen)

    shifted(tuner)
    backbone.eval()
    tuned = logits(backbone, x)
    assert not torch.equal(tuned, frozen)
    assert torch.equal(tuned, computed_anew(backbone, x))

    shifted(tuner)  # a step in training, then an evaluation
    with in_eval(backbone):
        assert torch.equal(logits(backbone, x), computed_anew(backbone, x))
        assert not torch.equal(logits(backbone, x), tuned)

    tuner.detach()
    assert torch.equal(logits(backbone, x), frozen)
    assert not differing(snapshot(backbone.network), state)


@pytest.mark.parametrize('net', NETS)
def test_a_trained_state_that_is_loaded_is_seen(net):
    backbone = randomised(NETS[net]())
    x = images(2, backbone.preprocessing.size[0])
    model = with_head(backbone, [Biases()])
    untrained = {name: value.clone() for name, value in model.trained_state().items()}
    before = logits(model, x)
    shifted(model.tuners[0])
    trained = {name: value.clone() for name, value in model.trained_state().items()}
    model.eval()
    tuned = logits(model, x)
    model.load_trained_state(untrained)
    assert torch.equal(logits(model, x), before)
    model.load_trained_state(trained)
    assert torch.equal(logits(model, x), tuned) and not torch.equal(tuned, before)


@pytest.mark.parametrize('net', ['levit', 'attribute'])
def test_merging_and_unmerging_beside_kept_tensors(net):
    backbone = randomised(NETS[net]())
    x = images(2, backbone.preprocessing.size[0])
    model = with_head(backbone, [Biases(), TUNERS.build(dict(type='LoRA', rank=2, at='weight'))])
    for tuner in model.tuners:
        shifted(tuner)
    model.eval()
    tuned = logits(model, x)
    model.merge()
    assert torch.allclose(logits(model, x), tuned, rtol=1e-3, atol=1e-3)
    model.unmerge()
    assert torch.equal(logits(model, x), tuned)


@pytest.mark.parametrize('net', ['levit', 'attribute', 'filled_buffer'])
def test_tuned_sets_never_answer_with_what_another_keeps(net):
    backbone = randomised(NETS[net]()).eval()
    x = images(2, backbone.preprocessing.size[0])
    frozen = logits(backbone, x)
    tasks = {}
    for name in ('one', 'other'):
        tasks[name] = with_head(with_same_weights(backbone), [Biases()])
        shifted(tasks[name].tuners[0])
    expected = {name: logits(copy.deepcopy(model).eval(), x) for name, model in tasks.items()}
    model = TunedModel(backbone, tasks)
    for name in ('one', 'other', 'one'):
        model.use(name)
        assert torch.equal(model(x), expected[name])
    with model.disabled():
        assert torch.equal(model(x), frozen)


def test_a_copy_keeps_and_forgets_for_itself():
    backbone = stranger('dict_of_dicts').eval()
    x = images(2)
    frozen = logits(backbone, x)
    other = copy.deepcopy(backbone)
    tuner = Biases()
    tuner.attach(other)
    shifted(tuner)
    other.eval()
    assert not torch.equal(logits(other, x), frozen)
    assert torch.equal(logits(backbone, x), frozen)
    tuner.detach()
    assert torch.equal(logits(other, x), frozen)
