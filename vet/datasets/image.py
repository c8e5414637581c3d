"""Any image source to one RGB image, in the same way for training and for inference."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vet.datasets.web import read_url
from vet.errors import DataError, UserError

URL_LIMIT_SECONDS = 30
URL_LIMIT_BYTES = 64 * 2**20
PROGRAMS = ('EPS',)         # formats that an interpreter would run


def to_rgb(image: Image.Image) -> Image.Image:
    """The PIL image as 8-bit RGB, upright.

    EXIF orientation is applied, transparency (alpha, or one transparent colour) is laid over white, 16-bit gray is
    scaled by 1/257. Of an animation, the frame that the image stands at: the first one where it was just opened.
    Raises DataError for pixels without a known range (32-bit float, integers outside 0 … 65535).
    """
    _check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):
        image = _from_16_bit(image)
    if image.mode == 'F':
        raise DataError('its pixels are 32-bit floats, of which the range is not known; '
                        'save it with 8 or 16 bits, or give an array of floats in [0, 1]')
    if image.mode == 'La':  # the only alpha mode that Pillow does not convert to RGBA directly
        image = image.convert('LA')
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image if image.mode == 'RGB' else image.convert('RGB')


@singledispatch
def open_image(source: Any) -> Image.Image:
    """The RGB image (see `to_rgb`) that `source` names or holds.

    source: a path, an http(s) URL, encoded bytes, a binary file, a PIL image, a dict with any of these under 'image',
    or an array (H, W), (H, W, 1), (H, W, 3: RGB) or (H, W, 4: RGBA) of uint8, uint16, bool, or floats in [0, 1].
    A URL is given 10 s for each answer of the server, 30 s in all, and 64 MiB; it may lead on to http(s) addresses alone. An image
    has at most twice PIL.Image.MAX_IMAGE_PIXELS, as Pillow's own readers allow. Raises DataError, naming the source, for what is
    missing, truncated or not an image, and UserError for any other kind of source.
    """
    if not hasattr(source, 'read'):
        raise UserError(f'an image is a path, an http(s) URL, bytes, a binary file, a PIL image, a numpy array, or a '
                        f'dict with one of these under "image"; given: {type(source).__name__}.')
    with _naming(getattr(source, 'name', 'the file given')):
        return _decode(io.BytesIO(source.read()))


@open_image.register
def _(source: str) -> Image.Image:
    if not source.lower().startswith(('http://', 'https://')):
        return open_image(Path(source))
    with _naming(source):
        return _decode(io.BytesIO(read_url(source, URL_LIMIT_BYTES, URL_LIMIT_SECONDS)))


@open_image.register
def _(source: os.PathLike) -> Image.Image:
    with _naming(os.fspath(source)):
        return _decode(source)


@open_image.register(bytes)
@open_image.register(bytearray)
@open_image.register(memoryview)
def _(source: bytes) -> Image.Image:
    with _naming('the bytes given'):
        return _decode(io.BytesIO(source))


@open_image.register
def _(source: Image.Image) -> Image.Image:
    with _naming(getattr(source, 'filename', '') or 'the PIL image given'):
        return to_rgb(source)


@open_image.register
def _(source: np.ndarray) -> Image.Image:
    with _naming(f'the array given, {source.dtype} {source.shape},'):
        if source.ndim != 2 and not (source.ndim == 3 and source.shape[-1] in (1, 3, 4)):
            raise DataError('its shape is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)')
        _check_size(source.shape[1], source.shape[0])
        values = source[..., 0] if source.shape[2:] == (1,) else source
        return to_rgb(Image.fromarray(_to_uint8(values)))


@open_image.register
def _(source: Mapping) -> Image.Image:
    if 'image' not in source:
        raise UserError(f'a dict stands for an image by its key "image"; given: the keys {sorted(map(str, source))}.')
    return open_image(source['image'])


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the source."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f'there is no image file {name!r}; check the path.') from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise DataError(f'cannot read {name} as an image: {error or type(error).__name__}. '
                        f'Replace it by an image that opens in a viewer, or leave it out.') from error


def _decode(file: Any) -> Image.Image:
    if isinstance(file, str | os.PathLike) and os.path.exists(file) and not os.path.isfile(file):
        raise DataError('it is a folder, a pipe or a device, not a file')
    with Image.open(file) as image:
        if image.format in PROGRAMS:
            raise DataError(f'it is a program in {image.format}, which is not run; save it as PNG')
        return to_rgb(image)


def _check_size(width: int, height: int) -> None:
    """DataError for an image without pixels, or with more of them than Pillow's readers take from a file."""
    if not width or not height:
        raise DataError(f'it has no pixels: {width} x {height}')
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise DataError(f'its {width:,} x {height:,} pixels are more than {2 * Image.MAX_IMAGE_PIXELS:,}; set '
                        f'PIL.Image.MAX_IMAGE_PIXELS to allow more')


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Mode I and I;16*, which Pillow's own `convert` would clip at 255, as mode L."""
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError('its integer pixels lie outside 0 … 65535')
    transparent = image.info.get('transparency')
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    return Image.fromarray(_to_uint8(values.astype(np.uint16)))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    kind = values.dtype.type
    if kind is np.uint8:
        return values
    if kind is np.bool_:
        return values * np.uint8(255)
    if kind is np.uint16:
        return np.rint(values / 257).astype(np.uint8)
    if not issubclass(kind, np.floating):
        raise DataError('its dtype is not uint8, uint16, bool or floating')
    if not (values.min() >= 0 and values.max() <= 1):  # written so that nan is refused as well
        raise DataError('its floats do not all lie in [0, 1]; divide by 255 or undo the normalisation')
    return np.rint(values * 255).astype(np.uint8)
