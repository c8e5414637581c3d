"""Modules that take or give several tensors: the one that the network reads is edited, or the tuner
refuses by name.
"""

import pytest
import torch
from torch import nn

from tests.contract.test_traps import torchvision_swin
from tests.nets import images, randomised, timm_net
from vet.core.backbone import Backbone, Preprocessing
from vet.core.site_map import Layout
from vet.errors import NoSiteError
from vet.registry import TUNERS


class Part(nn.Module):
    """Gives its sum in a form of many: beside numbers that nobody reads, or two that both are read."""

    def __init__(self, gives: str):
        super().__init__()
        self.gives, self.fc = gives, nn.Linear(6, 6)

    def forward(self, x, other=None):
        y, unread = self.fc(x), x * 2
        return dict(
            tensor=y,
            last=(unread, y),
            first=(y, unread),
            list=[unread, y],
            dict=dict(weights=unread, out=y),
            both=(y, x + 1),
            nested=(unread, [y, x]),
        )[self.gives]


class Net(nn.Module):
    def __init__(self, gives: str):
        super().__init__()
        self.stem, self.part, self.gives = nn.Conv2d(3, 6, 4, 4), Part(gives), gives

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        out = self.part(x)
        y = dict(
            tensor=lambda: out,
            last=lambda: out[1],
            first=lambda: out[0],
            list=lambda: out[1],
            dict=lambda: out['out'],
            both=lambda: out[0] + out[1],
            nested=lambda: out[1][0],
        )[self.gives]()
        return y.square().mean(1)


def made(gives: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        Net(gives), Layout({'block': 'part'}), Preprocessing(size=(8, 8)), dict(type='test', name='net')
    )


@pytest.mark.parametrize('gives', ['tensor', 'first', 'last', 'list', 'dict'])
def test_the_tensor_that_others_read_is_edited(gives):
    expected, backbone, x = made('tensor'), made(gives), images(2, 8)
    states = []
    for net in (expected, backbone):
        torch.manual_seed(1)
        tuner = TUNERS.build(dict(type='Adapter', width=2, init='xavier', at='block'))
        tuner.attach(net)
        states.append(net(x))
        gradients = torch.autograd.grad(
            states[-1].sum(), [p for _, p in tuner.trainable()], allow_unused=True
        )
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert torch.equal(*states) and not torch.equal(states[0], made('tensor')(x))
    tuner.detach()
    assert torch.equal(backbone(x), made('tensor')(x))


@pytest.mark.parametrize('gives', ['both', 'nested'])
def test_several_tensors_that_others_read_are_refused_by_name(gives):
    with pytest.raises(
        NoSiteError,
        match=r"Adapter needs a module that gives one tensor .*2 tensors in a tuple.*'part' \(Part",
    ):
        TUNERS.build(dict(type='Adapter', width=2, at='block')).attach(made(gives))


@pytest.mark.parametrize('position', ['after', 'parallel', 'before'])
def test_a_tensor_that_the_module_takes_by_keyword_is_edited(position):
    expected, backbone, x = made('tensor'), made('tensor'), images(2, 8)
    part = backbone.network.part
    backbone.network.part = nn.Module()
    backbone.network.part.add_module('inner', part)
    backbone.network.part.forward = lambda x: part(x=x, other=None)
    by_keyword = Backbone(
        backbone.network, Layout(), Preprocessing(size=(8, 8)), dict(type='test', name='keyword')
    )
    states, nets = [], ((expected, 'part'), (by_keyword, 'part.inner'))
    for net, at in nets:
        torch.manual_seed(1)
        tuner = TUNERS.build(dict(type='Adapter', width=2, init='xavier', at=at, position=position))
        tuner.attach(net)
        states.append(net(x))
        tuner.rest()
        assert torch.equal(net(x), made('tensor')(x))
        tuner.resume()
        assert torch.equal(net(x), states[-1])
    assert torch.equal(*states) and not torch.equal(states[0], made('tensor')(x))


def test_blocks_of_coat_that_pass_four_resolutions_are_refused_and_its_others_train_every_number():
    def coat() -> Backbone:
        return randomised(
            timm_net(
                'coat_tiny',
                32,
                img_size=32,
                embed_dims=(32, 32, 32, 32),
                serial_depths=(1, 1, 1, 1),
                parallel_depth=1,
                num_heads=8,
            )
        )

    with pytest.raises(
        NoSiteError, match=r"gives 3 tensors in a tuple\), but 'parallel_blocks\.0' \(ParallelBlock"
    ):
        TUNERS.build(dict(type='Adapter', width=2, at='block')).attach(coat())
    backbone = coat()
    tuner = TUNERS.build(
        dict(type='Adapter', width=2, init='xavier', at=[f'serial_blocks{i}.0' for i in (2, 3, 4)])
    )
    tuner.attach(backbone)
    gradients = torch.autograd.grad(
        backbone(images(2)).pow(2).sum(), [p for _, p in tuner.trainable()], allow_unused=True
    )
    assert all(gradient is not None for gradient in gradients)


def test_a_list_of_tensors_is_no_input_of_an_adapter():
    backbone = timm_net('selecsls42', 64)
    with pytest.raises(
        NoSiteError, match=r"takes a tensor first \(this one takes a list first\), but 'features\.0'"
    ):
        TUNERS.build(dict(type='Adapter', width=2, position='before', at='block')).attach(backbone)


def test_an_input_that_the_module_never_computes_with_is_not_edited():
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, unread, x):
            return self.fc(x)

    backbone = made('tensor')
    network = backbone.network
    network.part.fc = Passes()
    network.part.forward = lambda x: network.part.fc(x, x + 1)
    backbone = Backbone(
        network, Layout({'block': 'part.fc'}), Preprocessing(size=(8, 8)), dict(type='test', name='net')
    )
    with pytest.raises(NoSiteError, match='computes with the first tensor it takes'):
        TUNERS.build(dict(type='Adapter', width=2, position='before', at='block')).attach(backbone)


def test_an_adapter_behind_an_attention_on_channels_last_maps_acts_along_the_channels():
    backbone = torchvision_swin()
    tuner = TUNERS.build(dict(type='Adapter', width=3, at='attn'))
    tuner.attach(backbone)
    widths = {
        name: module.qkv.in_features
        for name, module in backbone.network.named_modules()
        if hasattr(module, 'qkv')
    }
    assert {name.replace('/', '.'): delta.down.in_features for name, delta in tuner.deltas.items()} == widths
