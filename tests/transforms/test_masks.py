"""Transforms of an image and its mask together."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.objectives.masks import COLORS, VOID, drawing
from vet.engine.feed.batches import viewed
from vet.errors import UserError
from vet.transforms.torchvision import build_transform, on_tensors, split_normalisation

NEEDS = dict(size=(24, 24), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, interpolation='bilinear')


def pair(size=(32, 40)):
    """An image whose colors are those of its mask, without noise."""
    _, mask = drawing(3, size)
    mask[mask == VOID] = 0
    return Image.fromarray(COLORS[mask]), torch.from_numpy(mask)


def both(entries, seed=0, wrap=lambda view: view, given=None):
    image, mask = given or pair()
    torch.manual_seed(seed)
    return viewed(wrap(build_transform(entries, **NEEDS, on_masks=True)), image, mask)


def colors(mask):
    return torch.from_numpy(COLORS)[mask.long().clamp(max=2)].permute(2, 0, 1) / 255


STEPS = [
    [dict(type='RandomHorizontalFlip', p=1.0)],
    [dict(type='RandomCrop', size=[16, 20])],
    [dict(type='CenterCrop', size=[20, 20])],
    [dict(type='RandomVerticalFlip', p=1.0), dict(type='RandomCrop', size=17)],
]


@pytest.mark.parametrize('wrap', [lambda view: view, on_tensors], ids=['pil', 'tensors'])
@pytest.mark.parametrize('entries', STEPS, ids=str)
def test_image_and_mask_move_together(entries, wrap):
    image, mask = both(entries, wrap=wrap)
    assert mask.dtype == torch.uint8 and image.shape[1:] == mask.shape
    torch.testing.assert_close(image.as_subclass(torch.Tensor), colors(mask), rtol=0, atol=1e-6)


def test_a_mask_is_resized_by_its_nearest_pixels():
    image, mask = both(None)  # the crop of evaluation
    assert image.shape[1:] == mask.shape == (24, 24) and set(mask.unique().tolist()) <= {0, 1, 2}
    _, scaled = both([dict(type='RandomResizedCrop', size=50), dict(type='ColorJitter', brightness=0.5)])
    assert scaled.shape == (50, 50) and set(scaled.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize('options', [{}, dict(fill=100)], ids=str)
@pytest.mark.parametrize('entry', [
    dict(type='RandomRotation', degrees=(45, 45)), dict(type='Pad', padding=4),
    dict(type='RandomCrop', size=[40, 48], pad_if_needed=True),
], ids=str)  # fmt: skip
def test_pixels_that_a_transform_adds_have_no_class(entry, options):
    image, mask = both([{**entry, **options}])
    assert set(mask.unique().tolist()) == {0, 1, 2, 255} and mask[0, 0] == 255
    wanted = options.get('fill', 0) / 255
    assert image[0, 0, 0].item() == pytest.approx(wanted)
    torch.testing.assert_close(
        image[:, mask == 255], torch.full_like(image[:, mask == 255], wanted), atol=0.5, rtol=0
    )


def test_pixels_without_a_class_stay_so():
    image, mask = pair()
    mask[4:8] = 255
    _, moved = both([dict(type='RandomHorizontalFlip', p=1.0)], given=(image, mask))
    assert torch.equal(moved, mask.flip(1))


def test_the_normalisation_is_split_off():
    image, mask = pair()
    first, last = split_normalisation(build_transform([], **NEEDS, on_masks=True))
    seen, kept = viewed(first, image, mask)
    whole, _ = both([])
    assert torch.equal(last(seen), whole) and torch.equal(kept, mask)


def test_a_mask_of_another_size():
    image, mask = pair()
    with pytest.raises(
        UserError, match=r'the mask has 31 x 40 pixels \(height x width\), but the image has 32 x 40'
    ):
        both([], given=(image, mask[1:]))
    assert np.asarray(image).shape == (32, 40, 3)
