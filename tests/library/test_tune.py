"""vet.tune: what trains, what stays frozen, what detach gives back, and what is refused."""

import re

import pytest
import torch
from torch import nn

import vet
from tests.library.networks import VIT, images, labels, same, state_of, trained, vit
from vet.core.model import ImageClassifier
from vet.errors import UnknownNameError, UserError


def test_a_tuned_network_computes_what_the_network_computes():
    net = vit()
    before = net(images())
    tuned = vet.tune(net, vet.LoRA(rank=2))
    assert torch.equal(tuned(images()), before) and torch.equal(net(images()), before)
    trained(tuned)
    assert not torch.equal(tuned(images()), before)
    assert torch.equal(tuned(images()), net(images()))


def test_the_tuners_and_the_classifier_train_and_nothing_else():
    net = vit()
    before = state_of(net)
    tuned = trained(vet.tune(net, vet.LoRA(rank=2)))
    names = set(tuned.trainable())
    assert names == {
        *(f'tuners.0.deltas.blocks.{i}.attn.qkv.{part}' for i in range(2) for part in 'AB'),
        'tuners.1.thawed.head.weight',
        'tuners.1.thawed.head.bias',
    }
    after = state_of(net)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        'head.weight',
        'head.bias',
    }


def test_detach_gives_the_network_back_bit_for_bit():
    net = vit()
    net.norm.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    before, scores = state_of(net), net(images())
    tuned = trained(vet.tune(net, vet.LoRA(rank=2), vet.BitFit()))
    assert tuned.detach() is net
    assert same(state_of(net), before) and torch.equal(net(images()), scores)
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert 'forward' not in {name for module in net.modules() for name in vars(module)}


def test_detach_can_keep_the_trained_classifier():
    net = vit()
    tuned = trained(vet.tune(net, vet.LoRA(rank=2)))
    head = net.head.weight.detach().clone()
    tuned.detach(keep_whole=True)
    assert torch.equal(net.head.weight, head) and net.head.weight.requires_grad


def test_merge_gives_a_plain_network_and_unmerge_is_exact():
    tuned = trained(vet.tune(vit(), vet.LoRA(rank=2)))
    scores = tuned(images())
    net = tuned.merge()
    torch.testing.assert_close(net(images()), scores, rtol=1e-4, atol=1e-5)
    assert 'forward' not in {name for module in net.modules() for name in vars(module)}
    for refused in (tuned.detach, lambda: tuned.save('nowhere'), lambda: tuned.train()(images())):
        with pytest.raises(UserError, match='merged'):
            refused()
    tuned.unmerge()
    assert torch.equal(tuned.eval()(images()), scores)


def test_further_parameters_train_by_name():
    tuned = vet.tune(vit(), vet.LoRA(rank=2), train=['norm.*', 'blocks.1.mlp'])
    names = set(tuned.trainable())
    assert {'tuners.1.thawed.norm.weight', 'tuners.1.thawed.blocks.1.mlp.fc1.bias'} <= names
    with pytest.raises(UnknownNameError, match="parameter or module in train 'haed'. Did you mean 'head'"):
        vet.tune(vit(), vet.LoRA(rank=2), train='haed')


@pytest.mark.filterwarnings('error')
def test_a_network_without_a_known_classifier_is_told():
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    with pytest.warns(UserWarning, match='knows no classifier of Sequential'):
        tuned = vet.tune(net, vet.LoRA(rank=2, at='linear'), example=images(1))
    assert set(tuned.trainable()) == {'tuners.0.deltas.3.A', 'tuners.0.deltas.3.B'}


REFUSED = [
    (lambda: vet.tune('vit', vet.LoRA()), "net is 'vit'; allowed: a torch.nn.Module"),
    (lambda: vet.tune(vit()), 'no tuner is given'),
    (lambda: vet.tune(vit(), vet.LoRA), 'LoRA is a class; give a tuner: vet.LoRA'),
    (lambda: vet.tune(vit(), dict(type='LoRA')), 'allowed: tuners of vet'),
    (lambda: vet.tune(vet.tune(vit(), vet.LoRA(2)), vet.LoRA(2)), 'tuned already. Call detach'),
    (lambda: vet.tune(vit(num_classes=0), vet.LinearProbe()), 'nothing of VisionTransformer would train'),
    (lambda: vet.tune(vit(), vet.LoRA(2), example=images(1, 24)), 'does not take an image of'),
    (lambda: vet.tune(vit(), vet.LoRA(2), example='x'), 'allowed: a tensor'),
    (
        lambda: vet.tune(nn.DataParallel(vit()), vet.LoRA(2)),
        'wrapped in a DataParallel: give the network itself',
    ),
    (lambda: vet.tune(torch.compile(vit()), vet.LoRA(2)), 'OptimizedModule.*compile the tuned network'),
    (lambda: vet.tune(vit().to('meta'), vet.LoRA(2)), 'on the meta device'),
    (lambda: vet.tune(nn.ReLU(), vet.LoRA(2)), 'no parameters'),
    (lambda: vet.tune(nn.Linear, vet.LoRA(2)), 'net is the class Linear'),
    (
        lambda: vet.tune(torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}), vet.LoRA(2)),
        'quantised, and vet edits weights of floating point',
    ),
]


@pytest.mark.parametrize('call, text', REFUSED, ids=[text for _, text in REFUSED])
@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_mistake_is_refused_by_name(call, text):
    with pytest.raises(UserError, match=text):
        call()


def test_print_shows_what_trains():
    text = str(vet.tune(vit(), vet.LoRA(rank=2)))
    assert re.search(r'LoRA +blocks.0.attn.qkv +A \(2, 32\), B \(96, 2\) +256\n', text)
    assert re.search(r'Partial +head +weight \(5, 32\), bias \(5,\) +165\n', text)
    assert text.startswith('VisionTransformer, tuned\n') and '677 numbers train' in text


def test_tuned_numbers_are_those_of_the_config_door():
    """LoRA's numbers and gradients equal those of an ImageClassifier with the same seed."""
    net = vit()
    backbone = vet.BACKBONES.build(
        dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=dict(VIT))
    )
    backbone.network.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith('head')})
    head = nn.Linear(32, 5)
    torch.manual_seed(3)
    model = ImageClassifier(backbone, [vet.LoRA(rank=2)], head)
    torch.manual_seed(3)
    tuned = vet.tune(net, vet.LoRA(rank=2))
    model.head.load_state_dict(net.head.state_dict())
    for each in (model, tuned):
        torch.nn.functional.cross_entropy(each.eval()(images()), labels()).backward()
    theirs, ours = model.trainable(), tuned.trainable()
    assert torch.equal(model(images()), tuned(images()))
    for name in (name for name in theirs if name.startswith('tuners.0')):
        assert torch.equal(theirs[name], ours[name]) and torch.equal(theirs[name].grad, ours[name].grad)
    assert torch.equal(model.head.weight.grad, ours['tuners.1.thawed.head.weight'].grad)


def test_a_refused_network_is_as_it_was():
    net = vit()
    before = state_of(net)
    with pytest.raises(UserError):
        vet.tune(net, vet.LoRA(2), vet.LoRA(2, at='nothing'))
    assert same(state_of(net), before) and all(p.requires_grad for p in net.parameters())
    vet.tune(net, vet.LoRA(2))
