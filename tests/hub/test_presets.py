"""Known models by id: the config that an id stands for."""

import pytest

from vet.errors import UnknownNameError
from vet.hub.presets import PRESETS, preset

IDS = {
    'damo/cv_vitb16_classification_vision-efficient-tuning-lora': 'vit_base_patch16_224.orig_in21k',
    'damo/cv_vitl14_classification_vision-efficient-tuning-lora': 'vit_large_patch14_clip_quickgelu_224.openai',
}


def test_there_are_no_others():
    assert set(PRESETS) == set(IDS)


@pytest.mark.parametrize('name', IDS)
def test_an_id_with_and_without_its_owner(name):
    expected = dict(
        model=dict(
            backbone=dict(type='timm', name=IDS[name], lora_length=10),
            tuners=[],
            head=dict(type='Linear', num_classes=None),
            finetune=True,
        ),
        dataset={},
        train=dict(max_epochs=20, lr_scheduler=dict(type='CosineAnnealingLR', T_max=None, warmup_epochs=1)),
    )
    assert preset(name) == preset(name.removeprefix('damo/')) == expected


def test_a_config_that_is_changed_leaves_the_next():
    name = next(iter(IDS))
    preset(name)['model']['backbone']['lora_length'] = 4
    assert preset(name)['model']['backbone']['lora_length'] == 10


@pytest.mark.parametrize(
    'name', ['damo/cv_vitb16_classification_vision-efficient-tuning-lor', 'other/cv_vitb16', '']
)
def test_an_id_that_is_not_known_is_refused(name):
    with pytest.raises(UnknownNameError, match='vision-efficient-tuning-lora.*Or give a config file'):
        preset(name)
