import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vet.datasets import image as module
from vet.datasets.image import open_image, to_rgb
from vet.errors import DataError, UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image, format='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image):
    assert image.mode == 'RGB'
    return np.asarray(image).reshape(-1, 3).tolist()


@pytest.fixture
def photo():
    """A picture of four colours, 2 wide and 2 high."""
    image = Image.new('RGB', (2, 2))
    image.putdata([RED, (0, 255, 0), (0, 0, 255), (9, 8, 7)])
    return image


@pytest.mark.parametrize(
    'mode, value, expected',
    [
        ('1', 1, WHITE),
        ('L', 77, (77, 77, 77)),
        ('LA', (40, 255), (40, 40, 40)),
        ('LA', (40, 0), WHITE),
        ('RGB', (1, 2, 3), (1, 2, 3)),
        ('RGBA', (255, 0, 0, 255), RED),
        ('RGBA', (9, 9, 9, 0), WHITE),
        ('RGBA', (0, 0, 0, 51), (204, 204, 204)),
        ('RGBa', (0, 0, 0, 51), (204, 204, 204)),
        ('La', (0, 51), (204, 204, 204)),
        ('PA', (0, 0), WHITE),
        ('CMYK', (0, 255, 255, 0), RED),
        ('CMYK', (0, 0, 0, 0), WHITE),
        ('YCbCr', (255, 128, 128), WHITE),
        ('HSV', (0, 255, 255), RED),
        ('I;16', 257 * 100, (100, 100, 100)),
        ('I;16', 65535, WHITE),
        ('I;16B', 257 * 100, (100, 100, 100)),
        ('I', 257 * 100, (100, 100, 100)),
        ('I', 300, (1, 1, 1)),
    ],
)
def test_every_mode(mode, value, expected):
    assert pixels(to_rgb(Image.new(mode, (1, 1), value))) == [list(expected)]


def test_float_pixels_are_refused():
    for image in (Image.new('F', (1, 1), 0.5), Image.new('I', (1, 1), 70000), Image.new('I', (1, 1), -1)):
        with pytest.raises(DataError):
            to_rgb(image)


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_16_bit_files_are_scaled_not_clipped(format):
    ramp = np.array([[0, 257, 25700, 65535]], np.uint16)
    assert [pixel[0] for pixel in pixels(open_image(encoded(Image.fromarray(ramp), format)))] == [
        0,
        1,
        100,
        255,
    ]


def test_16_bit_with_a_transparent_gray():
    data = encoded(Image.fromarray(np.array([[257, 514]], np.uint16)), transparency=514)
    assert pixels(open_image(data)) == [[1, 1, 1], [255, 255, 255]]


def test_palette_and_its_transparency():
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert pixels(open_image(encoded(image))) == [[255, 0, 0], [0, 0, 255]]
    assert pixels(open_image(encoded(image, transparency=1))) == [[255, 0, 0], [255, 255, 255]]
    assert pixels(open_image(encoded(image, 'GIF', transparency=0))) == [[255, 255, 255], [0, 0, 255]]


def test_one_transparent_colour(photo):
    assert pixels(open_image(encoded(photo, transparency=RED)))[:2] == [[255, 255, 255], [0, 255, 0]]


def test_cmyk_jpeg():
    data = encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG', quality=100)
    assert np.abs(np.array(pixels(open_image(data))) - RED).max() <= 2


@pytest.mark.parametrize(
    'orientation, order',
    [(1, 'abcd'), (2, 'badc'), (3, 'dcba'), (4, 'cdab'), (5, 'acbd'), (6, 'cadb'), (7, 'dbca'), (8, 'bdac')],
)
@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_exif_orientation(photo, orientation, order, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    named = dict(zip('abcd', pixels(photo), strict=True))
    assert pixels(open_image(encoded(photo, format, exif=exif))) == [named[letter] for letter in order]


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_broken_exif_is_no_reason_to_refuse(photo):
    exif = b'Exif\0\0' + struct.pack('<2sHIHB', b'II', 42, 8, 9, 0)
    assert open_image(encoded(photo, 'JPEG', exif=exif)).size == (2, 2)


@pytest.mark.parametrize('format', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_first_frame(format):
    frames = [Image.new('RGB', (4, 4), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(np.array(pixels(open_image(data))) - RED).max() <= 3


def test_sources(photo, tmp_path):
    path = tmp_path / 'photo.png'
    photo.save(path)
    expected = pixels(photo)
    data = path.read_bytes()
    array = np.asarray(photo)
    with path.open('rb') as file:
        for source in (
            path,
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            photo,
            array,
            {'image': path},
            {'image': array, 'label': 3},
        ):
            assert pixels(open_image(source)) == expected, source
    assert photo.mode == 'RGB' and open_image(photo) is not photo


@pytest.mark.parametrize(
    'array, expected',
    [
        (np.full((1, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((1, 1, 1), 7, np.uint8), (7, 7, 7)),
        (np.array([[[1, 2, 3]]], np.uint8), (1, 2, 3)),
        (np.array([[[1, 2, 3, 0]]], np.uint8), WHITE),
        (np.array([[[0, 257, 65535]]], np.uint16), (0, 1, 255)),
        (np.array([[[0, 257, 65535]]], '>u2'), (0, 1, 255)),
        (np.array([[[0, 0.2, 1]]], np.float32), (0, 51, 255)),
        (np.array([[[0, 0.2, 1, 0.2]]]), (204, 214, 255)),
        (np.array([[0.2]], np.float16), (51, 51, 51)),
        (np.array([[True]]), WHITE),
        (np.arange(12, dtype=np.uint8).reshape(1, 4, 3)[:, ::-4], (9, 10, 11)),
    ],
)
def test_arrays(array, expected):
    assert pixels(open_image(array)) == [list(expected)]


@pytest.mark.parametrize(
    'array',
    [
        np.zeros((3, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((2, 2), np.int64),
        np.full((2, 2), 2.0),
        np.full((2, 2), -0.1),
        np.full((2, 2), np.nan),
        np.zeros((0, 2)),
    ],
)
def test_arrays_refused(array):
    with pytest.raises(DataError, match='array given'):
        open_image(array)


def test_broken_sources_are_named(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for format in ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP'):
        data = encoded(noise, format)
        path = tmp_path / f'half.{format}'
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=path.name):
            open_image(path)
        with pytest.raises(DataError, match='the bytes given'):
            open_image(data[: len(data) // 2])
    for data in (b'', b'no image at all'):
        with pytest.raises(DataError, match='the bytes given'):
            open_image(data)
    with pytest.raises(DataError, match='no image file .*gone.png'):
        open_image(tmp_path / 'gone.png')
    with pytest.raises(DataError):
        open_image(tmp_path)
    with pytest.raises(DataError, match='half.JPEG'), Image.open(tmp_path / 'half.JPEG') as image:
        open_image(image)
    with pytest.raises(DataError, match='half.PNG'), (tmp_path / 'half.PNG').open('rb') as file:
        open_image(file)


def test_other_sources_are_refused():
    for source in (None, 3, ['a.png'], {'picture': 'a.png'}):
        with pytest.raises(UserError, match='image'):
            open_image(source)


def test_url(photo, web, monkeypatch):
    folder, address = web
    photo.save(folder / 'photo.png')
    assert pixels(open_image(f'{address}/photo.png')) == pixels(photo)
    with pytest.raises(DataError, match='gone.png.*404'):
        open_image(f'{address}/gone.png')
    monkeypatch.setattr(module, 'URL_LIMIT_BYTES', 20)
    with pytest.raises(DataError, match='more than 20 bytes'):
        open_image(f'{address}/photo.png')
    with pytest.raises(DataError, match='127.0.0.1:1'):
        open_image('http://127.0.0.1:1/photo.png')


def test_a_path_is_not_opened_as_a_url(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save('http.png')
    assert open_image('http.png').size == open_image(Path('http.png')).size == (2, 2)


@pytest.mark.parametrize(
    'source, message',
    [
        (np.zeros((0, 5, 3), np.uint8), 'has no pixels: 5 x 0'),
        (np.zeros((5, 0), np.uint8), 'has no pixels: 0 x 5'),
        (Image.new('RGB', (0, 4)), 'has no pixels: 0 x 4'),
        (np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)), '1,000,000 x 1,000,000 pixels are more'),
        (
            np.broadcast_to(np.uint8(0), (20_000, 20_000)),
            '20,000 x 20,000 pixels are more than .*set PIL.Image.MAX_IMAGE_PIXELS',
        ),
        (
            b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n',
            'a program in EPS, which vet does not run',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_pixels_too_many_pixels_and_programs(source, message):
    with pytest.raises(DataError, match=message):
        open_image(source)


def test_bytes_of_no_known_format_are_told_without_an_address_in_memory():
    with pytest.raises(DataError, match='the bytes given as an image: Pillow does not know its format. Rep'):
        open_image(b'<html>')
