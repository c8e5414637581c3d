"""ViT-B/16 without the head, once for all tests that count parameters on it."""

import pytest

from tests.nets import timm_net
from vet.registry import TUNERS


@pytest.fixture(scope='session')
def vit_b16():
    """On small images: parameters counted on it must not depend on the number of tokens."""
    return timm_net('vit_base_patch16_224', img_size=32, weight_init='skip')


@pytest.fixture
def count_on_vit_b16(vit_b16):
    """count_on_vit_b16(type=…, …): the number of parameters that such a tuner trains."""

    def count(**config: object) -> int:
        tuner = TUNERS.build(config)
        tuner.attach(vit_b16)
        try:
            return sum(parameter.numel() for _, parameter in tuner.trainable())
        finally:
            tuner.detach()

    return count
