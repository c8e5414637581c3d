"""Pillow's resize as products of matrices: the same levels, to the last one."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from vet.transforms.resampling import FILTERS, Resampling
from vet.transforms.torchvision import EvaluationCrop

SIZES = [(640, 427), (299, 224), (33, 57), (48, 48), (20, 300), (1, 5)]


@pytest.fixture(scope='module')
def photographs():
    first = Image.fromarray(load_sample_images().images[0])
    return [first.resize(size) for size in SIZES]


def resampled(image, *args):
    result = Resampling(*args)(torch.from_numpy(np.array(image))[None])[0]
    return result.permute(1, 2, 0).numpy()


@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize('crop_pct', [0.9, 1.0, 1.3])
def test_each_level_is_pillows(photographs, interpolation, crop_pct):
    for image in photographs:
        expected = np.asarray(EvaluationCrop(48, crop_pct, interpolation)(image))
        assert (
            expected.std() > 1
            and (resampled(image, int(48 / crop_pct), (48, 48), interpolation) == expected).all()
        )


def test_a_size_of_two_numbers_and_an_odd_crop(photographs):
    for image in photographs:
        expected = np.asarray(EvaluationCrop((40, 61), 0.8, 'bicubic')(image))
        assert (resampled(image, (50, 76), (40, 61), 'bicubic') == expected).all()
