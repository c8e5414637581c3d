"""Preprocessing settings and the changes a config makes to them; what a Backbone refuses."""

import pytest
from torch import nn

from tests.nets import timm_net
from vet.core.backbone import Backbone, Preprocessing
from vet.core.site import Layout
from vet.errors import UserError


def test_changes_replace_some_settings_and_keep_the_others():
    changed = Preprocessing().with_changes(dict(size=96, mean=[0.5, 0.5, 0.5]))
    assert changed == Preprocessing(size=(96, 96), mean=(0.5, 0.5, 0.5))
    assert Preprocessing().with_changes(dict(size=[64, 32])).size == (64, 32)
    assert Preprocessing().with_changes({}) == Preprocessing()


def test_unknown_setting_is_named_with_those_allowed():
    with pytest.raises(UserError, match=r"\['crop'\]; allowed: size, mean, std, crop_pct, interpolation"):
        Preprocessing().with_changes(dict(crop=1))


def test_size_the_network_does_not_take_is_named():
    with pytest.raises(UserError, match=r'vit_tiny_patch16_224 does not take images of \(48, 48\)'):
        timm_net('vit_tiny_patch16_224', 48, img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)


def test_network_without_pooled_features_is_refused():
    with pytest.raises(UserError, match=r'net gives \(2, 7, 7\) per image, not pooled features'):
        Backbone(nn.Conv2d(3, 2, 2), Layout(), Preprocessing(size=(8, 8)), dict(name='net'))


def test_all_parameters_are_frozen():
    backbone = timm_net('resnet18', 32, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    assert backbone.num_features == 8 and not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(std=0), 'std is 0; it must be a list'),
        (dict(mean=[0.5, -5, 0.5]), r'mean is \[0.5, -5, 0.5\]; it must be .*but -5 is not'),
        (dict(mean=[0.5, 'pil', 0.5]), "'pil' is not"),
        (dict(mean=[0.5, 0.5, False]), 'False is not'),
        (dict(std=[1e-45] * 3), 'std is'),
        (dict(std=[]), 'std is'),
        (dict(size=0), 'size is 0'),
        (dict(size=[8]), 'size is'),
        (dict(size=True), 'size is True'),
        (dict(size='8'), 'size is'),
        (dict(crop_pct=0), 'crop_pct is 0; it must be at least 0.05'),
        (dict(crop_pct=2), 'at most 1'),
        (dict(interpolation=3), 'interpolation is 3'),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        Preprocessing().with_changes(changes)


def test_values_in_range():
    changed = Preprocessing().with_changes(dict(size=8, mean=[0.5] * 3, std=(0.5,), crop_pct=1))
    assert (changed.size, changed.mean, changed.std) == ((8, 8), (0.5, 0.5, 0.5), (0.5,))
