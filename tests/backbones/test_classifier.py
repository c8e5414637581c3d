"""Backbones that keep their pretrained classifier: their logits, their weights, and the roles it adds."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from tests.backbones.test_weights import google_arrays
from tests.nets import VIT, images
from vet.core.backbone import Backbone
from vet.errors import DataError, UnknownNameError, UserError
from vet.hub.model_folder import load_backbone
from vet.registry import BACKBONES, TUNERS

NAME = 'vit_tiny_patch16_224'
SMALL_RESNET = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))


def build(**config: object) -> Backbone:
    return BACKBONES.build(dict(dict(type='timm', name=NAME, pretrained=False, classifier=True), **config))


def shuffle() -> Backbone:
    return build(type='torchvision', name='shufflenet_v2_x0_5', preprocessing=dict(size=32))


@pytest.fixture
def saved(tmp_path):
    """The path of a whole classifier of 5 classes, and its logits of `images(2)`."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        donor = timm.create_model(NAME, num_classes=5, **VIT).eval()
    save_file(donor.state_dict(), tmp_path / 'donor.safetensors')
    return tmp_path / 'donor.safetensors', donor(images(2)).detach()


def test_output_is_the_checkpoints_logits(saved):
    path, logits = saved
    backbone = build(checkpoint=path, kwargs=dict(VIT, num_classes=5)).eval()
    assert backbone.num_features == 5 and torch.equal(backbone(images(2)), logits)
    again = load_backbone(backbone.identity).eval()
    assert torch.equal(again(images(2)), logits)


def test_torchvision_output_is_the_checkpoints_logits(tmp_path):
    donor = models.shufflenet_v2_x0_5(num_classes=7).eval()
    save_file(donor.state_dict(), tmp_path / 'donor.safetensors')
    config = dict(
        type='torchvision',
        name='shufflenet_v2_x0_5',
        checkpoint=tmp_path / 'donor.safetensors',
        preprocessing=dict(size=64),
    )
    kept = build(**config, kwargs=dict(num_classes=7)).eval()
    assert torch.equal(kept(images(2, 64)), donor(images(2, 64)))
    assert torch.equal(load_backbone(kept.identity).eval()(images(2, 64)), donor(images(2, 64)))
    with pytest.raises(
        DataError, match=r'of another shape: fc\.weight is \(7, 1024\), needed \(1000, 1024\)'
    ):
        build(**config)
    donor.fc = torch.nn.Identity()
    features = build(**config, classifier=False)  # a last layer that does not fit is left out
    assert torch.equal(features.eval()(images(2, 64)), donor(images(2, 64)))


def test_checkpoint_without_the_classifier_is_refused(saved, tmp_path):
    from safetensors.torch import load_file

    state = {name: value for name, value in load_file(saved[0]).items() if not name.startswith('head.')}
    save_file(state, tmp_path / 'without.safetensors')
    with pytest.raises(DataError, match=r'missing: head\.weight, head\.bias \(2\)'):
        build(checkpoint=tmp_path / 'without.safetensors', kwargs=dict(VIT, num_classes=5))
    with pytest.raises(DataError, match=r'of another shape: head\.weight is \(5, 32\), needed \(1000, 32\)'):
        build(checkpoint=saved[0], kwargs=VIT)


def test_google_npz_gives_its_classifier_too(tmp_path):
    arrays = google_arrays(np.random.default_rng(0))
    np.savez(tmp_path / 'vit.npz', **arrays)
    backbone = build(checkpoint=tmp_path / 'vit.npz', kwargs=dict(VIT, num_classes=7))
    assert np.array_equal(backbone.network.head.weight.numpy(), arrays['head/kernel'].T)
    with pytest.raises(
        DataError, match=r'vit\.npz holds no Google \.npz weights.*has 7 classes, but the network has 1000'
    ):
        build(checkpoint=tmp_path / 'vit.npz', kwargs=VIT)


@pytest.mark.parametrize(
    'config, text',
    [
        (
            dict(pretrained=True, name=f'{NAME}.augreg_in21k', kwargs=dict(num_classes=5)),
            'num_classes is 5, but the classifier of',
        ),
        (dict(name='vit_small_patch14_reg4_dinov2', kwargs=VIT), 'has no classifier to keep'),
        (dict(kwargs=dict(VIT, num_classes=0)), 'has no classifier to keep'),
        (dict(classifier=False, kwargs=dict(VIT, num_classes=5)), 'num_classes'),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(config, text):
    with pytest.raises(UserError, match=text):
        build(**config)


def test_head_and_logits_are_roles_where_the_classifier_is_kept():
    sites = build(kwargs=dict(VIT, num_classes=5)).sites
    (head,), (logits,) = sites.find('head'), sites.find('logits')
    assert (head.name, tuple(head.weight.shape), head.depth) == ('head', (5, 32), VIT['depth'])
    assert (
        logits.module is sites.network
        and tuple(logits.out_shape) == (5,)
        and logits == sites.find('backbone')[0]
    )
    assert len(build(name='deit_tiny_distilled_patch16_224', kwargs=VIT).sites.find('head')) == 2
    assert shuffle().sites.find('head')[0].name == 'fc'
    without = build(classifier=False, kwargs=VIT)
    assert not {'head', 'logits'} & set(without.sites.roles())
    for role, text in (
        ('logits', "unknown role or module path 'logits'"),
        ('head', r"'head' \(Identity.* has no weight to change"),
    ):
        with pytest.raises(UserError, match=text):
            TUNERS.build(dict(type='LoRA', at=role)).attach(without)


@pytest.mark.parametrize(
    'config, linear, conv',
    [
        (dict(kwargs=VIT), 4 * 3 + 1, 1),
        (dict(kwargs=VIT, classifier=False), 4 * 3, 1),
        (dict(name='resnet18', kwargs=SMALL_RESNET, preprocessing=dict(size=32)), 1, 13),
        (dict(type='torchvision', name='mobilenet_v3_small', preprocessing=dict(size=32)), 2, 52),
    ],
    ids=str,
)
def test_linear_and_conv_are_every_one_that_is_called(config, linear, conv):
    backbone = build(**config)
    for role, kind, count in (('linear', torch.nn.Linear, linear), ('conv', torch.nn.Conv2d, conv)):
        expected = [name for name, module in backbone.network.named_modules() if isinstance(module, kind)]
        assert (
            sorted(site.name for site in backbone.sites.find(role)) == sorted(expected)
            and len(expected) == count
        )


def test_minlora_on_resnet50_is_48768_parameters():
    backbone = build(type='torchvision', name='resnet50', preprocessing=dict(size=32))
    lora = TUNERS.build(dict(type='LoRA', rank=16, at='linear'))
    lora.attach(backbone)
    assert (
        list(lora.deltas) == ['fc']
        and sum(p.numel() for _, p in lora.trainable()) == 16 * (2048 + 1000) == 48_768
    )


def test_minlora_of_every_convolution_counts_its_closed_formula():
    backbone = build(name='resnet18', kwargs=SMALL_RESNET, preprocessing=dict(size=32))
    lora = TUNERS.build(dict(type='LoRA', rank=4, at='conv'))
    lora.attach(backbone)
    convs = [module for module in backbone.network.modules() if isinstance(module, torch.nn.Conv2d)]
    expected = sum(
        4 * (c.out_channels + c.in_channels // c.groups * c.kernel_size[0] * c.kernel_size[1]) for c in convs
    )
    assert sum(p.numel() for _, p in lora.trainable()) == expected


def test_a_network_without_linear_layers_says_so():
    backbone = build(name='resnet18', classifier=False, kwargs=SMALL_RESNET, preprocessing=dict(size=32))
    with pytest.raises(UnknownNameError, match="'linear'.*Allowed: .*conv"):
        TUNERS.build(dict(type='LoRA', at='linear')).attach(backbone)
