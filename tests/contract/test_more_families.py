"""On further families every trained parameter has a gradient, or the tuner refuses by name."""

import pytest
import timm
import torch

from tests.contract.runs import default_pairs, pairs, widest
from tests.contract.test_traps import torchvision_swin
from tests.core.test_attention import coatnet, tiny_vit
from tests.nets import FAMILIES, images, randomised, timm_net
from vet.errors import UserError
from vet.registry import TUNERS

NETS = {'tiny_vit': tiny_vit, 'coatnet': coatnet, 'torchvision swin': torchvision_swin} | {
    name: lambda name=name: timm_net(name) for name in timm.list_models('test_*')
}
TUNERS_TRIED = [
    dict(type='LoRA', rank=1, at='weight'),
    dict(type='Adapter', width=2, at='block'),
    dict(type='Adapter', width=2, position='before', at='block'),
    dict(type='SSF'),
    dict(type='BitFit'),
]


def test_the_default_suite_has_every_tuner_on_two_families():
    for name, case in widest().items():
        works = {family for _, family in pairs(case) if case.on is None or family in case.on}
        assert len({family for of, family in default_pairs() if of.name == name} & works) >= 2, name
    assert {family for _, family in default_pairs()} == set(FAMILIES)


@pytest.mark.parametrize('net', NETS)
def test_every_trained_parameter_has_a_gradient(net):
    backbone = randomised(NETS[net]()).eval()
    worked = 0
    for config in TUNERS_TRIED:
        tuner = TUNERS.build(config)
        try:
            tuner.attach(backbone)
        except UserError:
            continue
        worked += 1
        names, parameters = zip(*tuner.trainable())
        loss = backbone(images(1, backbone.preprocessing.size[0])).square().sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert not [name for name, gradient in zip(names, found) if gradient is None], config
        tuner.detach()
    assert worked >= 2
