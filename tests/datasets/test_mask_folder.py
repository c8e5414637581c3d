"""Folders of images and masks: layouts, the numbers in masks, and what is refused before training."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.objectives.masks import NAMES, VOID, drawing, write_folder
from vet.datasets.mask_folder import MaskFolder
from vet.datasets.torchvision_masks import TorchvisionMasks
from vet.errors import DataError, UserError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'drawings', [('train', 3), ('val', 2)])


def test_items_are_images_and_masks(folder):
    data = MaskFolder(folder.parent, 'train+val', 'drawings', classes=NAMES, ignore=[VOID])
    assert len(data) == 5 and data.classes == NAMES and data.objective == dict(type='Segmentation')
    image, mask = data[0]
    wanted = np.asarray(Image.open(folder / 'train' / 'masks' / '0.png'))
    assert image.size == (32, 32) and mask.dtype == np.uint8
    assert np.array_equal(mask, np.where(wanted == VOID, 255, wanted)) and (mask[:, 0] == 255).all()


def test_other_layouts(folder, tmp_path):
    for part in ('images', 'masks'):
        (tmp_path / 'turned' / part).mkdir(parents=True)
        (folder / 'train' / part).rename(tmp_path / 'turned' / part / 'train')
    assert len(MaskFolder(tmp_path, 'train', 'turned', classes=NAMES, ignore=[VOID])) == 3
    renamed = dict(images='images/train', masks='masks/train')
    assert len(MaskFolder(tmp_path, None, 'turned', classes=NAMES, ignore=[VOID], **renamed)) == 3


def test_class_names_from_a_file_and_from_numbers(folder):
    (folder / 'names.txt').write_text('ground\nbox\nstripe\n\n')
    assert MaskFolder(folder, 'val', classes='names.txt', ignore=[VOID]).classes == NAMES
    named = MaskFolder(folder, 'val', classes=dict(stripe=2, ground=0, box=1), ignore=[VOID])
    plain = MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])
    assert named.classes == ['stripe', 'ground', 'box']
    assert np.array_equal(named[0][1] == 0, plain[0][1] == 2)


def test_palettes_and_sixteen_bits(folder):
    path = folder / 'val' / 'masks' / '0.png'
    gray = Image.open(path).copy()
    wanted = MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])[0][1]
    palette = Image.fromarray(np.asarray(gray), 'P')
    palette.putpalette([7, 0, 200] * 256)
    for image in (palette, Image.fromarray(np.asarray(gray, np.uint16))):
        image.save(path)
        assert np.array_equal(MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])[0][1], wanted)


COLOURS = {'ground': (0, 0, 0), 'box': (128, 64, 128), 'stripe': (0, 64, 128)}
WHITE = (255, 255, 255)


@pytest.fixture
def coloured(folder):
    """The folder, whose masks have colours. Pixels without a class are white."""
    colours = np.zeros((256, 3), np.uint8)
    colours[:3], colours[VOID] = list(COLOURS.values()), WHITE
    for path in folder.glob('*/masks/*.png'):
        Image.fromarray(colours[np.asarray(Image.open(path))]).save(path)
    return folder


def test_masks_with_colours(folder, request):
    wanted = [mask for _, mask in MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])]
    coloured = request.getfixturevalue('coloured')
    data = MaskFolder(coloured, 'val', classes=COLOURS, ignore=[WHITE])
    assert data.classes == NAMES
    assert all(np.array_equal(mask, right) for (_, mask), right in zip(data, wanted, strict=True))
    path = coloured / 'val' / 'masks' / '0.png'
    Image.open(path).convert('P', palette=Image.Palette.ADAPTIVE).save(
        path
    )  # a palette with the same colours
    assert np.array_equal(MaskFolder(coloured, 'val', classes=COLOURS, ignore=[WHITE])[0][1], wanted[0])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({}, r'has the colour \(255, 255, 255\) in .* pixels, which is the colour of none of the 3 classes'),
        (
            dict(classes=COLOURS | {'box': (0, 0, 0)}),
            r'the colour \(0, 0, 0\) of a mask has several meanings',
        ),
        (
            dict(classes=COLOURS | {'box': (0, 0, 256)}),
            r'classes has the colour \(0, 0, 256\); allowed: three',
        ),
        (dict(classes=COLOURS | {'box': 4}), 'classes has the colour 4; allowed: three'),
        (
            dict(classes={'ground': 0, 'box': (1, 1, 1)}),
            'allowed: whole numbers from 0 to 65,535, or colours',
        ),
        (dict(classes=NAMES), 'pixels of the mode .RGB., and the classes have numbers'),
    ],
)
def test_colours_that_mean_nothing_are_refused(coloured, arguments, message):
    with pytest.raises(UserError, match=message):
        MaskFolder(coloured, 'val', **dict(classes=COLOURS) | arguments)


def test_a_turned_photo_has_an_upright_mask(folder):
    pixels, mask = drawing(3, (24, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(folder / 'val' / 'images' / '0.png', exif=exif)
    Image.fromarray(mask).save(folder / 'val' / 'masks' / '0.png')
    image, read = MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])[0]
    assert (image.height, image.width) == read.shape == (24, 40)
    assert np.array_equal(np.asarray(image), pixels)


def save(array, mode=None):
    return lambda path: Image.fromarray(array, mode).save(path)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda path: path.unlink(), r"1 of 2 images in .*images' have no mask in .*such as .*0.png"),
        (save(np.zeros((31, 32), np.uint8)), r'0.png. has 31 x 32 pixels \(height x width\), but its image has 32'),
        (save(np.full((32, 32), 7, np.uint8)), r'has the number 7 in 1,024 of 1,024 pixels.*none of the 3 cl.*ignore=\[7\]'),
        (save(np.zeros((32, 32, 3), np.uint8)), "pixels of the mode 'RGB', and the classes have numbers"),
        (lambda path: path.write_bytes(b'no image'), 'cannot read .*0.png. as a mask'),
    ],
)  # fmt: skip
def test_wrong_masks_are_found_at_once(folder, spoil, message):
    spoil(folder / 'val' / 'masks' / '0.png')
    with pytest.raises(DataError, match=message):
        MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])


def test_masks_without_any_class_are_refused(folder):
    for mask in (folder / 'val' / 'masks').iterdir():
        Image.fromarray(np.full((32, 32), VOID, np.uint8)).save(mask)
    with pytest.raises(DataError, match='all pixels of the 2 masks, such as .*0.png.*, are without a class'):
        MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])
    assert len(MaskFolder(folder, 'train+val', classes=NAMES, ignore=[VOID])) == 5


def test_a_second_mask_of_an_image_is_refused(folder):
    save(np.ones((32, 32), np.uint8))(folder / 'val' / 'masks' / '0.tif')
    with pytest.raises(DataError, match=r"two masks, .*masks/0\.png. and .*masks/0\.tif'. Remove one"):
        MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])


def test_an_image_that_says_it_is_huge_is_refused_by_name(folder):
    path = folder / 'val' / 'images' / '0.png'
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack('>II', 60_000, 60_000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DataError, match=r'images/0.png as an image: .*3600000000 pixels'):
        MaskFolder(folder, 'val', classes=NAMES, ignore=[VOID])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(path='nowhere'), 'there is no folder .*nowhere'),
        (dict(split='test'), "'test'.*train"),
        (dict(masks='labels'), "there is no folder .*labels'"),
        (dict(classes='names.txt'), 'the class names cannot be read from .*names.txt'),
        (dict(classes=dict(a=0, b=0, c=1, d=2)), 'the number 0 of a mask has several meanings'),
        (dict(ignore=[1]), 'the number 1 of a mask has several meanings'),
        (
            dict(classes=dict(a=70_000)),
            'classes has the number 70000; allowed: whole numbers from 0 to 65,535',
        ),
        (dict(classes=NAMES[:2]), 'has the number 2 in'),
        (dict(classes=[]), 'classes is empty'),
        (dict(images='pictures'), 'no folder .pictures. in a folder of a split'),
    ],
)
def test_refusals(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        MaskFolder(folder, **{**dict(split='train', classes=NAMES, ignore=[VOID]), **arguments})


def test_an_empty_folder(tmp_path):
    for part in ('images', 'masks'):
        (tmp_path / 'train' / part).mkdir(parents=True)
    with pytest.raises(DataError, match='MaskFolder has no image in this split'):
        MaskFolder(tmp_path, 'train', classes=NAMES)


# Datasets of torchvision ------------------------------------------------------------------------------------


def pair(folder, image, mask, number, values):
    pixels, drawn = drawing(number, (20, 24))
    for path, array in ((image, pixels), (mask, values[drawn])):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / path)


def test_voc(tmp_path):
    values, home = np.array([0, 15, 7, 0, 0, 0, 0, 0, 0, 255], np.uint8), tmp_path / 'VOCdevkit/VOC2012'
    for number in range(2):
        pair(home, f'JPEGImages/{number}.jpg', f'SegmentationClass/{number}.png', number, values)
    (home / 'ImageSets/Segmentation').mkdir(parents=True)
    (home / 'ImageSets/Segmentation/val.txt').write_text('0\n1\n')
    data = TorchvisionMasks(tmp_path, 'val', name='VOCSegmentation', download=False)
    assert len(data) == 2 and data.classes[15] == 'person' and len(data.classes) == 21
    assert set(np.unique(data[0][1])) == {0, 7, 15, 255}
    with pytest.raises(
        UserError,
        match="split of torchvision.datasets.VOCSegmentation 'test'. Allowed: train, train.val, val",
    ):
        TorchvisionMasks(tmp_path, 'test', name='VOCSegmentation')


def test_pets(tmp_path):
    values, home = np.array([2, 1, 3, 0, 0, 0, 0, 0, 0, 3], np.uint8), tmp_path / 'oxford-iiit-pet'
    pair(home, 'images/Pug_1.jpg', 'annotations/trimaps/Pug_1.png', 1, values)
    (home / 'annotations/test.txt').write_text('Pug_1 1 1 1\n')
    data = TorchvisionMasks(tmp_path, 'test', name='OxfordIIITPet', download=False)
    assert data.classes == ['pet', 'background'] and set(np.unique(data[0][1])) == {0, 1, 255}
    with pytest.raises(DataError, match='OxfordIIITPet cannot be read from'):
        TorchvisionMasks(tmp_path / 'nowhere', 'test', name='OxfordIIITPet', download=False)
    (home / 'annotations/test.txt').write_text('../../../away 1 1 1\n')  # the mask lies inside
    with pytest.raises(DataError, match=r'away\.jpg., outside .*its list is not the published one'):
        TorchvisionMasks(tmp_path, 'test', name='OxfordIIITPet', download=False)
