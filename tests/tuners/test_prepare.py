"""What the tuners that look at training images before step 0 have in common."""

import pytest
import torch

from tests.nets import images, tiny
from vet.registry import TUNERS


@pytest.mark.parametrize(
    'config', [dict(type='GPS'), dict(type='SCT', channels=5)], ids=lambda config: config['type']
)
def test_prepare_stops_after_its_images(config):
    backbone, tuner = tiny('vit').eval(), TUNERS.build(dict(config, images=5))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield images(2).double(), torch.tensor([0, 1])

    tuner.prepare(endless())
    assert len(asked) == 3
