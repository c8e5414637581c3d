"""The evaluation crop of torchvision's backbones is the crop of the weights' own transforms, pixel for
pixel.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from vet.registry import BACKBONES
from vet.transforms.torchvision import build_transform

FEW = ('efficientnet_b0', 'mobilenet_v3_small', 'resnet18', 'shufflenet_v2_x0_5')
LARGE = 100e6  # parameters
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize(
    (900, 600), Image.Resampling.BICUBIC
)


def parameters(name):
    return models.get_model_weights(name).DEFAULT.meta['num_params']


def cases() -> list:
    small = [name for name in models.list_models(module=models) if parameters(name) < LARGE]
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in small]


@pytest.mark.parametrize('name', cases())
def test_the_crop_is_torchvisions(name):
    backbone = BACKBONES.build(dict(type='torchvision', name=name, pretrained=False))
    view = build_transform(None, **vars(backbone.preprocessing))(IMAGE)
    theirs = models.get_model_weights(name).DEFAULT.transforms()(IMAGE)
    assert view.shape == theirs.shape and torch.allclose(view, theirs, atol=1e-5)
