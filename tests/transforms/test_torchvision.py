"""Lists of transforms: the evaluation crop is timm's, the backbone's size goes in where none is given, errors are told."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

from vet.errors import UnknownNameError, UserError
from vet.transforms.torchvision import build_transform, split_normalisation, split_still

VIEW = dict(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.875, interpolation='bicubic')


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))


@pytest.mark.parametrize('changes', [{}, dict(interpolation='bilinear'), dict(crop_pct=1.0), dict(size=(48, 48), crop_pct=0.9)])
def test_evaluation_is_timms(image, changes):
    view = VIEW | changes
    expected = timm.data.create_transform((3, *view['size']), mean=view['mean'], std=view['std'], crop_pct=view['crop_pct'],
                                          interpolation=view['interpolation'])(image)
    assert torch.allclose(build_transform(None, **view)(image), expected, atol=1e-6)


def test_settings_of_the_backbone_are_defaults(image):
    crop = build_transform([dict(type='RandomResizedCrop', scale=[0.5, 1])], **VIEW)
    assert crop(image).shape == (3, 32, 32) and crop.transforms[0].interpolation.value == 'bicubic'
    given = build_transform([dict(type='RandomResizedCrop', size=[16, 20], interpolation='nearest')], **VIEW)
    assert given(image).shape == (3, 16, 20) and given.transforms[0].interpolation.value == 'nearest'


def test_no_transform_normalises_alone(image):
    out = build_transform([], **VIEW)(image)
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - torch.tensor(VIEW['mean'])[:, None, None]) \
        / torch.tensor(VIEW['std'])[:, None, None]
    assert torch.allclose(out, expected, atol=1e-6) and out.dtype == torch.float32


@pytest.mark.parametrize('entries, still', [
    (None, ['Resize', 'CenterCrop']), ([], []), ([dict(type='RandomResizedCrop')], []),
    ([dict(type='Resize'), dict(type='RandomHorizontalFlip'), dict(type='CenterCrop')], ['Resize']),
    ([dict(type='EvaluationCrop'), dict(type='Resize', size=40), dict(type='Pad', padding=2)], ['Resize', 'CenterCrop', 'Resize'])])
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


@pytest.mark.parametrize('transform', [Noise(8), Backwards([v2.Resize(8), v2.CenterCrop(6)]), v2.RandomApply([v2.Resize(8)]),
                                       v2.Compose([v2.ToImage(), v2.Resize(8)]), v2.Identity()])
def test_what_is_not_known_to_be_still_is_left_whole(transform):
    assert split_still(transform) == ([], transform)
    assert split_normalisation(transform)[0] is transform


@pytest.mark.parametrize('entry, error, message', [
    (dict(type='RandomCorp'), UnknownNameError, "unknown transform 'RandomCorp'. Did you mean .*'RandomCrop'"),
    (dict(type='RandomCrop', sizes=3), UnknownNameError, "option of transform 'RandomCrop' 'sizes'. Did you mean 'size'"),
    (dict(type='RandomAffine'), UserError, "needs 'degrees'"),
    (dict(type='RandomHorizontalFlip', p=2), UserError, 'RandomHorizontalFlip.* cannot be made'),
    (dict(type='Resize', interpolation='cubic'), UnknownNameError, "unknown interpolation 'cubic'. Did you mean 'bicubic'"),
    (dict(size=3), UserError, 'a transform is given as a dict with a "type"')])
def test_errors(entry, error, message):
    with pytest.raises(error, match=message):
        build_transform([entry], **VIEW)
