"""Concatenated mean and maximum pools in place of a network's own; AlexNet's loading and freezing
practice.
"""

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from tests.nets import images
from vet.core.backbone import Backbone
from vet.errors import UnknownNameError, UserError
from vet.registry import BACKBONES, TUNERS


def torchvision(name: str, **config: object) -> Backbone:
    return BACKBONES.build(
        dict(dict(type='torchvision', name=name, pretrained=False, preprocessing=dict(size=64)), **config)
    ).eval()


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('resnet18', dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))),
        ('mobilenetv2_035', dict(pad_type='same')),
    ],
)
def test_timm_concatenates_mean_and_maximum(name, kwargs):
    backbone = BACKBONES.build(
        dict(
            type='timm',
            name=name,
            pretrained=False,
            kwargs=dict(kwargs, global_pool='catavgmax'),
            preprocessing=dict(size=64),
        )
    ).eval()
    x = images(2, 64)
    maps = backbone.network.forward_features(x)
    assert torch.allclose(backbone(x), torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1), atol=1e-6)
    assert backbone.num_features == 2 * maps.shape[1]


@pytest.mark.parametrize(
    'name, channels',
    [
        ('alexnet', 256),
        pytest.param('vgg11', 512, marks=pytest.mark.slow),
        ('mobilenet_v3_small', 576),
        ('squeezenet1_1', None),
    ],
)
def test_torchvision_pool_takes_the_place_of_pool_and_classifier(name, channels):
    if channels is None:
        with pytest.raises(
            UserError, match=f"pool is 'catavgmax', but torchvision '{name}' has no pool of maps"
        ):
            torchvision(name, pool='catavgmax')
        return
    backbone, x = torchvision(name, pool='catavgmax'), images(2, 64)
    maps = backbone.network.features(x)
    assert torch.allclose(backbone(x), torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1), atol=1e-6)
    assert backbone.num_features == 2 * channels


def test_torchvision_resnet_pools_its_last_block():
    backbone, seen = torchvision('resnet18', pool='max'), []
    backbone.network.layer4.register_forward_hook(lambda module, args, out: seen.append(out))
    assert torch.equal(backbone(images(2, 64)), seen[0].amax((2, 3))) and backbone.num_features == 512
    assert torchvision('resnet18', pool='catavgmax').num_features == 1024


@pytest.mark.parametrize(
    'config, error, text',
    [
        pytest.param(
            dict(name='vit_b_32', kwargs=dict(image_size=64)),
            UserError,
            "torchvision 'vit_b_32' has no pool of maps",
            marks=pytest.mark.slow,
        ),
        (dict(name='mobilenet_v2'), UserError, "torchvision 'mobilenet_v2' has no pool of maps"),
        (
            dict(name='resnet18', classifier=True),
            UserError,
            "pool is 'catavgmax', but the kept classifier needs the pool",
        ),
        (
            dict(name='resnet18', pool='cat'),
            UnknownNameError,
            "unknown pool of backbone 'torchvision' 'cat'. Did you mean 'catavgmax'",
        ),
    ],
    ids=str,
)
def test_where_there_is_no_such_pool_it_is_refused(config, error, text):
    with pytest.raises(error, match=text):
        torchvision(**{'pool': 'catavgmax', **config})


# AlexNet -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('pool, features', [(None, 4096), ('catavgmax', 512)])
def test_alexnet_of_other_classes_and_from_several_gpus_loads(tmp_path, pool, features):
    donor = models.alexnet(num_classes=3).eval()
    save_file(
        {f'module.{name}': value for name, value in donor.state_dict().items()},
        tmp_path / 'alexnet.safetensors',
    )
    backbone, x = (
        torchvision('alexnet', pool=pool, checkpoint=tmp_path / 'alexnet.safetensors'),
        images(1, 64),
    )
    assert backbone.num_features == features
    assert torch.equal(backbone.network.features(x), donor.features(x))
    if pool is None:
        donor.classifier[6] = torch.nn.Identity()
        assert torch.equal(backbone(x), donor(x))


def test_shufflenet_of_other_classes_and_from_several_gpus_loads(tmp_path):
    donor = models.shufflenet_v2_x0_5(num_classes=3).eval()
    torch.save(
        dict(state_dict={f'module.{name}': value for name, value in donor.state_dict().items()}),
        tmp_path / 'net.pth',
    )
    backbone, x = torchvision('shufflenet_v2_x0_5', checkpoint=tmp_path / 'net.pth'), images(1, 64)
    donor.fc = torch.nn.Identity()
    assert torch.equal(backbone(x), donor(x))


@pytest.mark.parametrize(
    'freezing, trained',
    [
        (dict(names='features.10.'), ['features.10.weight', 'features.10.bias']),
        (dict(names=r'features\.(8|10)\.bias'), ['features.8.bias', 'features.10.bias']),
        (dict(indices=(-2, None)), ['features.10.weight', 'features.10.bias']),
        (dict(blocks=2), ['features.8.weight', 'features.8.bias', 'features.10.weight', 'features.10.bias']),
    ],
    ids=str,
)
def test_alexnet_is_frozen_by_prefix_by_pattern_by_index_and_by_block(freezing, trained):
    backbone, partial = (
        torchvision('alexnet', pool='catavgmax'),
        TUNERS.build(dict(type='Partial', **freezing)),
    )
    partial.attach(backbone)
    assert [name for name, _ in partial.trainable()] == [f'thawed.{name}' for name in trained]
    assert [name for name, p in backbone.network.named_parameters() if p.requires_grad] == trained
