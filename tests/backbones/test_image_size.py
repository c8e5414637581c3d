"""The size that a network was built for is the size of its preprocessing, however its family keeps the size."""

import pytest
import torch

from tests.nets import images, timm_net
from vet.errors import UserError
from vet.registry import BACKBONES

SMALL = {
    'vit_tiny_patch16_224': dict(depth=1),
    'test_maxvit': {},
    'levit_128s': dict(embed_dim=(16, 32, 32), key_dim=8, depth=(1, 1, 1), num_heads=(1, 2, 2)),
    'efficientformerv2_s0': dict(depths=(1, 1, 2, 2), embed_dims=(8, 16, 16, 32), num_vit=1),
    'volo_d1_224': {},
    'efficientvit_m0': dict(embed_dim=(16, 32, 32), key_dim=(8, 8, 8), depth=(1, 1, 1)),
    'visformer_tiny': dict(embed_dim=32, depth=(1, 1, 1), num_heads=2),
    'pit_ti_224': dict(depth=(1, 1, 1), base_dims=(16, 16, 16), heads=(1, 2, 4)),
}


@pytest.mark.parametrize('name', SMALL)
def test_the_built_size_is_the_size_of_the_images(name):
    backbone = timm_net(name, img_size=64, **SMALL[name])
    assert backbone.preprocessing.size == backbone.published.size == (64, 64)
    with torch.no_grad():
        assert backbone.eval()(images(1, 64)).shape == (1, backbone.num_features)


@pytest.mark.parametrize('given, size', [((64, 96), (64, 96)), ([96, 64], (96, 64))])
def test_height_and_width_may_differ(given, size):
    assert timm_net('vit_tiny_patch16_224', img_size=given, depth=1).preprocessing.size == size


@pytest.mark.parametrize('name', ['levit_128s', 'volo_d1_224', 'vit_tiny_patch16_224'])
def test_another_size_is_refused_by_name(name):
    with pytest.raises(
        UserError, match=rf'{name} does not take images of \(96, 96\) .*it was built for \(64, 64\)'
    ):
        timm_net(name, 96, img_size=64, **SMALL[name])


def test_another_size_is_taken_where_the_network_takes_it():
    backbone = timm_net('visformer_tiny', 64, img_size=64, **SMALL['visformer_tiny'])
    assert backbone.preprocessing.size == (64, 64)
    backbone = timm_net('vit_tiny_patch16_224', 96, img_size=64, depth=1, dynamic_img_size=True)
    assert (backbone.preprocessing.size, backbone.sites.layout.grid) == ((96, 96), (6, 6))


def torchvision(name: str, size: int | None = None, **kwargs: object):
    return BACKBONES.build(
        dict(
            type='torchvision',
            name=name,
            pretrained=False,
            kwargs=kwargs,
            preprocessing=dict(size=size) if size else {},
        )
    )


def test_torchvision_too():
    backbone = torchvision('vit_b_32', image_size=64)
    assert backbone.preprocessing.size == (64, 64) and backbone.sites.layout.grid == (2, 2)


@pytest.mark.slow
def test_torchvisions_maxvit_calls_the_size_otherwise():
    assert torchvision('maxvit_t', input_size=(448, 448)).preprocessing.size == (448, 448)
    with pytest.raises(
        UserError, match=r'vit_b_32 does not take images of \(96, 96\) .*built for \(64, 64\)'
    ):
        torchvision('vit_b_32', 96, image_size=64)
