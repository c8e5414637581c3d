"""Preprocessing settings and the changes a config makes to them; what a Backbone refuses."""

from dataclasses import asdict

import pytest
import timm
from torch import nn

from tests.nets import timm_net
from vet.core.backbone import Backbone, Preprocessing
from vet.core.permits import PREPROCESSING
from vet.core.site_map import Layout
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
        (dict(std=[0.2, 0.2]), r'std is \[0.2, 0.2\]; it must be of one or three values'),
        (dict(size=0), 'size is 0'),
        (dict(size=[8]), 'size is'),
        (dict(size=True), 'size is True'),
        (dict(size='8'), 'size is'),
        (dict(crop_pct=0), 'crop_pct is 0; it must be at least 0.05'),
        (dict(crop_pct=2), 'at most 1'),
        (dict(interpolation=3), 'interpolation is 3'),
        (
            dict(interpolation='bicubicc'),
            "unknown preprocessing.interpolation 'bicubicc'. Did you mean 'bicubic'",
        ),
        (dict(size=2049), 'size is 2049; it must be at least 1 and at most 2,048'),
        (dict(gray_range=[4095, 0]), 'gray_range is .*in rising order'),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        Preprocessing().with_changes(changes)


@pytest.mark.parametrize(
    'given',
    [
        dict(size=2048),
        dict(size=2049),
        dict(size=[8, 8]),
        dict(crop_pct=1.15),
        dict(crop_pct=0.1),
        dict(crop_pct=2),
        dict(mean=[0.5]),
        dict(mean=[127.5] * 3),
        dict(std=[1 / 255] * 3),
        dict(std=[1e-4] * 3),
        dict(interpolation='lanczos'),
        dict(interpolation='cubic'),
        dict(gray_range=[0, 4095]),
        dict(gray_range=[1, 1]),
    ],
    ids=str,
)
def test_a_folder_may_say_what_a_config_may_say(given):
    try:
        asdict(Preprocessing().with_changes(given))
        is_allowed = True
    except UserError:
        is_allowed = False
    assert PREPROCESSING.allows(given) == is_allowed


def test_the_preprocessing_of_every_timm_model_is_allowed():
    """Such as volo_d5_512's crop of 1.15."""
    names = timm.list_pretrained()
    assert len(names) > 1000
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        published = dict(
            size=list(cfg.input_size[1:]), mean=list(cfg.mean), std=list(cfg.std), crop_pct=cfg.crop_pct
        )
        assert PREPROCESSING.allows(published | dict(interpolation=cfg.interpolation)), name


def test_values_in_range():
    changed = Preprocessing().with_changes(dict(size=8, mean=[0.5] * 3, std=(0.5,), crop_pct=1))
    assert (changed.size, changed.mean, changed.std) == ((8, 8), (0.5, 0.5, 0.5), (0.5,))
