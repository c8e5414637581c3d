"""Lists of transforms: the evaluation crop is timm's, the backbone's size goes in where none is given,
errors are told.
"""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import Normalize as V1Normalize
from torchvision.transforms import v2

from vet.errors import UnknownNameError, UserError
from vet.registry import TRANSFORMS
from vet.transforms import torchvision as module
from vet.transforms.torchvision import (
    build_transform,
    normalisation,
    on_tensors,
    refuse_unless_pixels,
    split_normalisation,
    split_still,
)

VIEW = dict(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.875, interpolation='bicubic')


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))


@pytest.mark.parametrize(
    'changes', [{}, dict(interpolation='bilinear'), dict(crop_pct=1.0), dict(size=(48, 48), crop_pct=0.9)]
)
def test_evaluation_is_timms(image, changes):
    view = VIEW | changes
    expected = timm.data.create_transform(
        (3, *view['size']),
        mean=view['mean'],
        std=view['std'],
        crop_pct=view['crop_pct'],
        interpolation=view['interpolation'],
    )(image)
    assert torch.allclose(build_transform(None, **view)(image), expected, atol=1e-6)


def test_settings_of_the_backbone_are_defaults(image):
    crop = build_transform([dict(type='RandomResizedCrop', scale=[0.5, 1])], **VIEW)
    assert crop(image).shape == (3, 32, 32) and crop.transforms[0].interpolation.value == 'bicubic'
    given = build_transform([dict(type='RandomResizedCrop', size=[16, 20], interpolation='nearest')], **VIEW)
    assert given(image).shape == (3, 16, 20) and given.transforms[0].interpolation.value == 'nearest'


def test_no_transform_normalises_alone(image):
    out = build_transform([], **VIEW)(image)
    expected = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - torch.tensor(VIEW['mean'])[:, None, None]
    ) / torch.tensor(VIEW['std'])[:, None, None]
    assert torch.allclose(out, expected, atol=1e-6) and out.dtype == torch.float32


@pytest.mark.parametrize(
    'entries, still',
    [
        (None, ['Resize', 'CenterCrop']),
        ([], []),
        ([dict(type='RandomResizedCrop')], []),
        ([dict(type='Resize'), dict(type='RandomHorizontalFlip'), dict(type='CenterCrop')], ['Resize']),
        (
            [dict(type='EvaluationCrop'), dict(type='Resize', size=40), dict(type='Pad', padding=2)],
            ['Resize', 'CenterCrop', 'Resize'],
        ),
    ],
)
def test_what_a_transform_begins_and_ends_with(image, entries, still):
    whole = build_transform(entries, **VIEW)
    begin, rest = split_still(whole)
    assert [type(step).__name__ for step in begin] == still
    first, normalised = split_normalisation(rest)
    torch.manual_seed(0)
    seen = image
    for step in begin:
        seen = step(seen)
    uint8 = first(seen)
    assert uint8.dtype == torch.uint8
    torch.manual_seed(0)
    assert normalised(uint8).equal(whole(image))


class Noise(v2.Resize):
    """What it makes of an image is not told by its being a Resize."""


class Backwards(v2.Compose):
    def forward(self, image):
        for step in reversed(self.transforms):
            image = step(image)
        return image


@pytest.mark.parametrize(
    'transform',
    [
        Noise(8),
        Backwards([v2.Resize(8), v2.CenterCrop(6)]),
        v2.RandomApply([v2.Resize(8)]),
        v2.Compose([v2.ToImage(), v2.Resize(8)]),
        v2.Identity(),
    ],
)
def test_what_is_not_known_to_be_still_is_left_whole(transform):
    assert split_still(transform) == ([], transform)
    assert split_normalisation(transform)[0] is transform


@pytest.mark.parametrize(
    'entry, error, message',
    [
        (
            dict(type='RandomCorp'),
            UnknownNameError,
            "unknown transform 'RandomCorp'. Did you mean .*'RandomCrop'",
        ),
        (
            dict(type='RandomCrop', sizes=3),
            UnknownNameError,
            "option of transform 'RandomCrop' 'sizes'. Did you mean 'size'",
        ),
        (dict(type='RandomAffine'), UserError, "needs 'degrees'"),
        (
            dict(type='RandomHorizontalFlip', p=2),
            UserError,
            'p is 2; it must be at least 0 and at most 1 .*RandomHorizontalFlip',
        ),
        (
            dict(type='Resize', interpolation='cubic'),
            UnknownNameError,
            "unknown interpolation 'cubic'. Did you mean 'bicubic'",
        ),
        (dict(size=3), UserError, 'a transform is given as a dict with a "type"'),
    ],
)
def test_errors(entry, error, message):
    with pytest.raises(error, match=message):
        build_transform([entry], **VIEW)


SCALED = (
    [dict(type='ToTensor')],
    [dict(type='ToImage'), dict(type='ConvertImageDtype')],
    [dict(type='PILToTensor')],
    [],
    [dict(type='ToImage'), dict(type='ToDtype', dtype='float32', scale=True)],
)


@pytest.mark.parametrize('entries', SCALED, ids=lambda entries: entries[-1]['type'] if entries else 'none')
@pytest.mark.parametrize('own', [False, True], ids=['vet', 'own'])
@pytest.mark.parametrize('kind', ['pil', 'uint8', 'float', 'on tensors'])
def test_every_image_is_normalised_once(image, entries, own, kind):
    """However an image is given, whatever makes a tensor of the image, and whoever writes Normalize."""
    normalise = dict(type='Normalize', mean=list(VIEW['mean']), std=list(VIEW['std']))
    if kind in ('uint8', 'float') and any(entry['type'] == 'PILToTensor' for entry in entries):
        pytest.skip('torchvision takes PIL images alone there')
    transform = build_transform(entries + [normalise] * own, **VIEW)
    given = {
        'pil': image,
        'on tensors': image,
        'uint8': v2.functional.to_image(image),
        'float': v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True),
    }[kind]
    found = (on_tensors(transform) if kind == 'on tensors' else transform)(given)
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor), build_transform([], **VIEW)(image).as_subclass(torch.Tensor)
    )


def test_own_numbers_take_the_place_of_the_backbones(image):
    """What follows Normalize sees what was normalised; and a batch that ends so is not normalised by
    others.
    """
    entries = [
        dict(type='Normalize', mean=[0.1, 0.2, 0.3], std=[0.5]),
        dict(type='RandomErasing', p=1.0, value=7),
    ]
    transform = build_transform(entries, **VIEW)
    assert normalisation(transform) == ([0.1, 0.2, 0.3], [0.5])
    assert transform(image).max() == 7 and split_normalisation(transform)[0] is transform
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    torch.testing.assert_close(
        build_transform(entries[:1], **VIEW)(image).as_subclass(torch.Tensor), expected
    )


def test_an_image_that_is_given_is_not_written_into(image):
    """A dataset may keep the very tensor, and give the tensor again in the next epoch."""
    for dtype in (torch.uint8, torch.float32):
        given = v2.functional.to_dtype(v2.functional.to_image(image), dtype, scale=True)
        before, transform = given.clone(), build_transform([], **VIEW)
        first = transform(given)
        assert given.equal(before) and transform(given).equal(first)
        normalise = split_normalisation(transform)[1]
        assert normalise(given).equal(first) and given.equal(before)


@pytest.mark.parametrize('values', ['normalised', 'not scaled', 'nan'])
def test_floats_that_are_no_pixels(image, values):
    floats = v2.functional.to_dtype(
        v2.functional.to_image(image), torch.float32, scale=values != 'not scaled'
    )
    floats = dict(normalised=(floats - 0.5) / 0.25, nan=floats * float('nan')).get(values, floats)
    with pytest.raises(UserError, match='normalised already, or not scaled'):
        build_transform([], **VIEW)(floats)
    with pytest.raises(UserError, match='floats in 0..1. Take Normalize out of the transform of the dataset'):
        refuse_unless_pixels(floats)


def test_floats_that_a_resize_or_noise_left_outside(image):
    """A bicubic resize of floats overshoots, and an erased part may be noise: neither is refused."""
    floats = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
    resized = v2.functional.resize(floats, [97, 133], v2.InterpolationMode.BICUBIC)
    assert resized.min() < 0 and resized.max() > 1
    refuse_unless_pixels(resized)
    erased = [dict(type='ToTensor'), dict(type='RandomErasing', p=1.0, value='random')]
    assert build_transform(erased, **VIEW)(image).isfinite().all()


@pytest.mark.parametrize(
    'tensor, message',
    [
        (torch.zeros(3, 8, 8, dtype=torch.int64), 'image tensor of torch.int64; allowed: uint8, or floats'),
        (torch.zeros(8, 8, 3), r'of shape \(8, 8, 3\) as an image; allowed: \(3, H, W\)'),
        (torch.zeros(4, 8, 8), r'of shape \(4, 8, 8\)'),
        (torch.zeros(1, 3, 8, 8), r'of shape \(1, 3, 8, 8\)'),
    ],
)
def test_tensors_that_are_no_images(tensor, message):
    with pytest.raises(UserError, match=message):
        refuse_unless_pixels(tensor)


@pytest.mark.parametrize(
    'entries, message',
    [
        (
            [dict(type='Normalize', mean=[0.5], std=[0.5])] * 2,
            '2 steps of type Normalize; an image is normalised once',
        ),
        (
            [dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[1, 1, 1])],
            'mean is .* at least -1 and at most 2',
        ),
        ([dict(type='Normalize', mean=[0.5], std=[1e-45])], 'std is .* at least 0.001 and at most 10'),
        ([dict(type='Normalize', mean=[0.5, 0.5], std=[0.5])], 'mean is .*three numbers, or one'),
        ([dict(type='ToDtype', dtype='flaot32')], "unknown dtype 'flaot32'. Did you mean .*'float32'"),
    ],
)
def test_normalisations_that_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        build_transform(entries, **VIEW)


def thin(*shape):
    """A picture of smooth colours, uint8 (H, W, 3)."""
    ramp = np.linspace(0, 255, max(shape))
    ramp_HW = np.broadcast_to(ramp if shape[1] > shape[0] else ramp[:, None], shape)
    return Image.fromarray(np.stack([ramp_HW, 255 - ramp_HW, ramp_HW / 2], -1).astype(np.uint8))


@pytest.mark.parametrize('shape', [(1, 20_000), (20_000, 1), (2, 65_000), (65_000, 2), (1, 1_000_000)])
def test_a_long_and_thin_image_is_its_centre(shape):
    """Nothing but the centre is computed: the whole would have up to 256 x 256,000,000 pixels."""
    out = build_transform(None, **VIEW | dict(size=(224, 224)))(thin(*shape))
    whole = thin(*shape)
    middle = torch.tensor(whole.getpixel((shape[1] // 2, shape[0] // 2))) / 255
    expected = (middle - torch.tensor(VIEW['mean'])) / torch.tensor(VIEW['std'])
    assert out.shape == (3, 224, 224) and (out.mean((1, 2)) - expected).abs().max() < 0.1


@pytest.mark.parametrize('shape', [(6, 900), (900, 6), (17, 4_000)])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_the_centre_is_that_of_the_whole(monkeypatch, shape, interpolation):
    view = build_transform(None, **VIEW | dict(interpolation=interpolation))
    whole = view(thin(*shape))
    monkeypatch.setattr(module, 'LARGEST', 0)
    # two levels of 255: Pillow may resize rows or columns first
    assert (view(thin(*shape)) - whole).abs().max() < 0.03


def test_a_resize_that_nothing_cuts_is_refused_where_it_would_be_huge():
    resize = build_transform([dict(type='Resize', size=256), dict(type='RandomCrop')], **VIEW)
    with pytest.raises(
        ValueError,
        match='65,000 x 2 pixels is too long and thin: .* short side to 256 would make 8,320,000 x 256',
    ):
        resize(thin(2, 65_000))
    for entry in (dict(type='Resize', size=[64, 64]), dict(type='RandomResizedCrop')):
        assert build_transform([entry, dict(type='CenterCrop')], **VIEW)(thin(2, 65_000)).shape == (3, 32, 32)


def test_resize_is_torchvisions(image):
    for options in (
        dict(size=20),
        dict(size=(20, 30)),
        dict(size=20, max_size=25),
        dict(size=None, max_size=33),
    ):
        ours, theirs = TRANSFORMS.build(dict(type='Resize', **options)), v2.Resize(**options)
        assert np.array_equal(np.asarray(ours(image)), np.asarray(theirs(image)))
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize('kind', ['RandomApply', 'RandomChoice', 'RandomOrder'])
@pytest.mark.parametrize(
    'inner',
    [
        [v2.Normalize([0.5], [0.5])],
        [v2.Compose([v2.Normalize([0.5], [0.5])])],
        [v2.RandomApply([V1Normalize([0.5], [0.5])])],
    ],
    ids=['alone', 'composed', 'deeper'],
)
def test_a_normalize_that_some_images_would_meet_is_refused(kind, inner):
    with pytest.raises(UserError, match='a Normalize within Random.*; an image is normalised once'):
        build_transform([dict(type='ToTensor'), dict(type=kind, transforms=inner)], **VIEW)


@pytest.mark.parametrize('dtype', ['int32', 'int16', 'uint16', 'bool'])
def test_whole_numbers_without_a_known_range_are_refused(image, dtype):
    transform = build_transform([dict(type='ToImage'), dict(type='ToDtype', dtype=dtype)], **VIEW)
    with pytest.raises(UserError, match=f'images are torch.{dtype} before they are normalised'):
        transform(image)
