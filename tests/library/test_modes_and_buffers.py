"""Modes that the user sets, frozen norms under net.train(), and buffers that the network's forward changes."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vet
from tests.library.networks import images, labels, same, state_of, vit


class Changing(nn.Module):
    """Its forward changes buffers in three ways, and has a batch norm of its own class."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 4, 4))
        self.bn, self.own, self.fc = nn.BatchNorm2d(8), Centred(8), nn.Linear(8, 5)
        self.register_buffer('count', torch.zeros((), dtype=torch.long))
        self.register_buffer('mean', torch.zeros(8))

    def forward(self, x):
        x = self.own(self.bn(self.c(x)).mean((2, 3)))
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.fc(x + self.mean)


class Centred(nn.Module):
    """A norm by its statistics, whose name says nothing."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer('running_mean', torch.zeros(width))

    def forward(self, x):
        if self.training:
            self.running_mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.weight * (x - self.running_mean)


def changing(**given):
    return vet.tune(Changing(), vet.LoRA(2, at='fc'), example=images(1), **{'train': 'fc', **given})


def steps(tuned, switch):
    """Some steps of training, where `switch` sets the modes."""
    optimizer = torch.optim.SGD(tuned.trainable().values(), lr=0.1)
    for _ in range(2):
        switch.train()
        F.cross_entropy(tuned(images()), labels()).backward()
        optimizer.step()
        optimizer.zero_grad()
    switch.eval()


@pytest.mark.parametrize('caller', ['tuned', 'net', 'a list', 'the norm', 'a copy'])
def test_frozen_statistics_stay_whoever_calls_train(caller):
    net = timm.create_model('resnet10t', num_classes=5)
    before = state_of(net)
    tuned = vet.tune(net, vet.LoRA(2, at='conv'))
    if caller == 'a copy':
        tuned = copy.deepcopy(tuned)
        net = tuned.network
    switches = {'tuned': tuned, 'net': net, 'a list': nn.ModuleList([net]), 'the norm': net.layer1[0].bn1}
    switch = switches.get(caller, net)
    steps(tuned, switch)
    after = state_of(net)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {'fc.weight', 'fc.bias'}


def test_statistics_of_a_norm_that_trains_move_under_net_train(tmp_path):
    tuned = changing(train=['fc', 'bn', 'own'])
    steps(tuned, tuned.network)
    assert tuned.bn.num_batches_tracked == 2 and tuned.own.running_mean.abs().sum() > 0
    tuned.save(tmp_path / 'it')
    loaded = vet.load(tmp_path / 'it', Changing()).eval()
    assert same(state_of(loaded.network), state_of(tuned.network))
    statistics = tuned.bn.running_mean.clone()
    assert torch.equal(tuned.detach(keep_whole=True).bn.running_mean, statistics)


def test_modes_of_the_user_stay():
    net = timm.create_model('resnet10t', num_classes=5).train()
    net.layer2.eval()
    net.layer3[0].bn1.eval()
    net.layer4[0].bn1.train = lambda mode=True: net.layer4[0].bn1
    before = {name: module.training for name, module in net.named_modules()}
    frozen = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    tuned = vet.tune(net, dict(one=vet.LoRA(2, at='conv'), two=vet.NormTune(at='layer1.*')))
    tuned.use('two')
    tuned.use('one')
    for name, module in net.named_modules():
        is_own = 'train' in vars(module) and name == 'layer4.0.bn1'
        assert module.training == (before[name] and (name not in frozen or is_own)), name
    tuned.detach()
    assert {name: module.training for name, module in net.named_modules()} == before
    assert [name for name, module in net.named_modules() if 'train' in vars(module)] == ['layer4.0.bn1']


def test_new_tuners_have_the_mode_of_the_network():
    for training in (True, False):
        tuned = vet.tune(vit().train(training), vet.LoRA(2, dropout=0.5))
        assert {module.training for module in tuned.tuners.modules()} == {training}


def test_changed_buffers_come_back(tmp_path):
    tuned = changing()
    steps(tuned, tuned.network)
    assert tuned.count == 2 and tuned.mean.abs().sum() > 0
    tuned.save(tmp_path / 'it')
    loaded = vet.load(tmp_path / 'it', Changing()).eval()
    assert same(state_of(loaded.network), state_of(tuned.network))
    loaded.train().eval()
    assert torch.equal(loaded(images()), tuned(images()))
    loaded.save(tmp_path / 'again')
    again = vet.load(tmp_path / 'again', Changing()).eval()
    assert torch.equal(again(images()), loaded(images()))
    assert loaded.count == 4
    classify = vet.pipeline(model=tmp_path / 'again', network=Changing(), device='cpu')
    assert classify.model.backbone.network.count >= 3  # pipeline may run the network to check it
    assert same(state_of(again.detach()), state_of(Changing()))
