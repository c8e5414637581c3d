"""Corrupted: each formula of ImageNet-C by hand, strengths that grow, the same damage each time."""

import io

import numpy as np
import pytest
from PIL import Image

from vet.datasets.corrupted import CORRUPTIONS
from vet.datasets.digits import Digits
from vet.errors import UnknownNameError, UserError
from vet.registry import DATASETS

RANDOM = np.random.default_rng(0)
PHOTO = np.uint8(RANDOM.integers(40, 216, (12, 16, 3)).repeat(4, 0).repeat(4, 1))  # (48, 64, 3)


def damaged(tmp_path, name, severity=3, photo=PHOTO):
    """The damaged photo in 0 … 1."""
    folder = tmp_path / 'photos' / 'ant'
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(folder / 'a.png')
    entry = dict(type='ImageFolder', path='photos', split=None)
    dataset = DATASETS.build(
        dict(type='Corrupted', dataset=entry, corruption=name, severity=severity), root=tmp_path
    )
    return np.asarray(dataset[0][0]) / 255


def test_noises_have_their_size(tmp_path):
    x = PHOTO / 255
    assert (damaged(tmp_path, 'gaussian_noise') - x).std() == pytest.approx(0.18, rel=0.1)  # some is clipped
    # Poisson: the variance is x / 12
    assert (damaged(tmp_path, 'shot_noise') - x).std() == pytest.approx((x.mean() / 12) ** 0.5, rel=0.1)
    hit = np.isin(damaged(tmp_path, 'impulse_noise'), (0, 1))
    assert hit.mean() == pytest.approx(0.09, rel=0.15)


def test_brightness_and_contrast_are_their_formulas(tmp_path):
    x = PHOTO / 255
    value = x.max(-1, keepdims=True)
    assert np.allclose(damaged(tmp_path, 'brightness'), x * np.minimum(value + 0.3, 1) / value, atol=1 / 255)
    mean = x.mean((0, 1))
    assert np.allclose(damaged(tmp_path, 'contrast'), (x - mean) * 0.2 + mean, atol=1 / 255)


IMAGENET_C = dict(  # the `c = […][severity - 1]` of each corruption in the authors' make_imagenet_c.py
    gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    shot_noise=(60, 25, 12, 5, 3),
    impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
    gaussian_blur=(1, 2, 3, 4, 6),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
    jpeg_compression=(25, 18, 15, 10, 7),
)


def test_strengths_are_those_of_imagenet_c():
    assert {name: strengths for name, (_, strengths) in CORRUPTIONS.items()} == IMAGENET_C


def test_black_becomes_gray(tmp_path):
    assert np.allclose(
        damaged(tmp_path, 'brightness', photo=np.zeros((8, 8, 3), np.uint8)), 0.3, atol=1 / 255
    )


def test_pixelate_and_jpeg_are_pillows(tmp_path):
    image = Image.fromarray(PHOTO)
    small = image.resize((25, 19), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BOX
    )  # 0.4 of each
    assert np.array_equal(damaged(tmp_path, 'pixelate') * 255, np.asarray(small))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=15)
    assert np.array_equal(damaged(tmp_path, 'jpeg_compression') * 255, np.asarray(Image.open(file)))


def test_blur_spreads_a_point(tmp_path):
    point = np.zeros((65, 65, 3), np.uint8)
    point[32, 32] = 255
    found = damaged(tmp_path, 'gaussian_blur', severity=1, photo=point)[..., 0]
    assert found[32, 32] == pytest.approx(1 / (2 * np.pi), abs=0.01) and found[32, 33] < found[32, 32]


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_severity_grows_and_damage_repeats(tmp_path, name):
    coarse = Image.fromarray(np.uint8(RANDOM.integers(40, 216, (9, 9, 3))))
    photo = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC))
    sizes = [
        np.abs(damaged(tmp_path, name, severity, photo) - photo / 255).mean() for severity in range(1, 6)
    ]
    assert sizes == sorted(set(sizes)) and sizes[0] > 0
    assert np.array_equal(damaged(tmp_path, name), damaged(tmp_path, name))


def test_labels_and_identities_stay_apart():
    clean = Digits(split='test', digits=[5, 6])
    entry = dict(type='Digits', split='test', digits=[5, 6])
    found = DATASETS.build(dict(type='Corrupted', dataset=entry, corruption='contrast'))
    assert found.targets == clean.targets and found.classes == clean.classes
    source = found.samples[0][0]
    assert found.identity(source) != clean.identity(source)


@pytest.mark.parametrize(
    'changes, error, text',
    [
        (dict(corruption='fog'), UnknownNameError, "unknown corruption 'fog'.*gaussian_noise"),
        (dict(severity=6), UserError, 'severity is 6; it must be 1 or 2 or 3 or 4 or 5'),
        (
            dict(dataset=dict(type='MultiTask', tasks=dict(a=dict(type='Digits', split='test')))),
            UserError,
            'Corrupted has the dataset MultiTask',
        ),
    ],
    ids=str,
)
def test_refusals(changes, error, text):
    entry = dict(type='Corrupted', dataset=dict(type='Digits', split='test'), corruption='contrast') | changes
    with pytest.raises(error, match=text):
        DATASETS.build(entry)
