"""Opens any image source as one RGB image, in the same way for training and for inference."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vet.datasets.web import read_url
from vet.errors import DataError, DataWarning, UserError

URL_LIMIT_SECONDS = 30
URL_LIMIT_BYTES = 64 * 2**20
FEW_LEVELS = 2**13  # of 16 bits: an eighth of the range, which leaves 32 of 256 levels
Range = tuple[float, float] | None  # of gray levels
DEEP_COLOURS = re.compile(r'(RGB|LA).*;16.?')  # Pillow's names of layouts of which it keeps 8 of 16 bits
PROGRAMS = ('EPS',)  # formats that are programs; an interpreter would have to run them

# the extra `heic`: Pillow's plugins for the photos of phones
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
with suppress(ImportError):
    import pillow_jxl  # noqa: F401  (registers JPEG XL)


def to_rgb(image: Image.Image, gray_range: Range = None) -> Image.Image:
    """The PIL image as 8-bit RGB, upright.

    EXIF orientation is applied. Transparency (alpha, or one transparent colour) is laid over white. 16-bit
    gray is scaled by 1/257. An animation gives its current frame, which is the first frame if the image was
    just opened.

    gray_range: two levels of a gray image of more than 8 bits (16-bit, integer, float). The first level
        becomes 0, the second 255. Levels between them are scaled, levels outside are cut off. None: a
        DataWarning says once if an image uses only a small part of 0 … 65535.
    DataError for pixels without a known range (32-bit float, integers outside 0 … 65535), if gray_range is
    None.
    """
    _check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I') or (image.mode == 'F' and gray_range):
        image = _from_deep_gray(image, gray_range)
    if image.mode == 'F':
        raise DataError(
            'its pixels are 32-bit floats, whose range is not known; '
            'save it with 8 or 16 bits, give an array of floats in [0, 1], or set '
            'model.backbone.preprocessing.gray_range=(LOW, HIGH)'
        )
    if image.mode == 'La':  # the only alpha mode that Pillow does not convert to RGBA directly
        image = image.convert('LA')
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image if image.mode == 'RGB' else image.convert('RGB')


_said: list[str] = []  # the image of the warning of few gray levels, after the warning was given


@singledispatch
def open_image(source: object, gray_range: Range = None) -> Image.Image:
    """The RGB image (see `to_rgb`) that `source` names or holds.

    source: a path, an http(s) URL, encoded bytes, a binary file, a PIL image, an array, or a dict with any of
        these under 'image'. An array is (H, W), (H, W, 1), (H, W, 3: RGB) or (H, W, 4: RGBA), of uint8,
        uint16, bool, or floats in [0, 1].
    gray_range: the levels that become black and white, see `to_rgb`. With gray_range, a gray array may have
        any real type and range.
    A URL has 10 s for each answer of the server, 30 s in all, and 64 MiB. A URL may redirect only to http(s)
    addresses. An image has at most twice PIL.Image.MAX_IMAGE_PIXELS, as in Pillow's own readers.
    DataError, with the source's name, if the source is missing, truncated or no image. UserError for any
    other kind of source.
    """
    if not hasattr(source, 'read'):
        raise UserError(
            f'an image is a path, an http(s) URL, bytes, a binary file, a PIL image, a numpy array, or a '
            f'dict with one of these under "image"; given: {type(source).__name__}.'
        )
    with _naming(getattr(source, 'name', 'the file given')):
        return _decode(io.BytesIO(source.read()), gray_range)


@open_image.register
def _(source: str, gray_range: Range = None) -> Image.Image:
    if not source.lower().startswith(('http://', 'https://')):
        return open_image(Path(source), gray_range)
    with _naming(source):
        return _decode(io.BytesIO(read_url(source, URL_LIMIT_BYTES, URL_LIMIT_SECONDS)), gray_range)


@open_image.register
def _(source: os.PathLike, gray_range: Range = None) -> Image.Image:
    with _naming(os.fspath(source)):
        return _decode(source, gray_range)


@open_image.register(bytes)
@open_image.register(bytearray)
@open_image.register(memoryview)
def _(source: bytes, gray_range: Range = None) -> Image.Image:
    with _naming('the bytes given'):
        return _decode(io.BytesIO(source), gray_range)


@open_image.register
def _(source: Image.Image, gray_range: Range = None) -> Image.Image:
    with _naming(getattr(source, 'filename', '') or 'the PIL image given'):
        return to_rgb(source, gray_range)


@open_image.register
def _(source: np.ndarray, gray_range: Range = None) -> Image.Image:
    with _naming(f'the array given, {source.dtype} {source.shape},'):
        if source.ndim != 2 and not (source.ndim == 3 and source.shape[-1] in (1, 3, 4)):
            raise DataError('its shape is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)')
        _check_size(source.shape[1], source.shape[0])
        values = source[..., 0] if source.shape[2:] == (1,) else source
        if gray_range and values.ndim == 2 and values.dtype.kind in 'iuf' and values.dtype != np.uint8:
            return to_rgb(Image.fromarray(_windowed(values, gray_range)))
        if values.dtype == np.uint16:
            _warn_of_few_levels(values[..., :3] if values.ndim == 3 else values)
        return to_rgb(Image.fromarray(_to_uint8(values)))


@open_image.register
def _(source: Mapping, gray_range: Range = None) -> Image.Image:
    if 'image' not in source:
        raise UserError(
            f'a dict stands for an image by its key "image"; given: the keys {sorted(map(str, source))}.'
        )
    return open_image(source['image'], gray_range)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Any error inside becomes a DataError that names the source."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f'there is no image file {name!r}; check the path.') from error
    except UnidentifiedImageError as error:  # Pillow's text names an object in memory
        raise DataError(
            f'cannot read {name} as an image: Pillow does not know its format. Replace it by an image that '
            'opens in a viewer, or leave it out.'
        ) from error
    except Exception as error:  # a broken file can make Pillow's decoders raise any error
        raise DataError(
            f'cannot read {name} as an image: {error or type(error).__name__}. '
            f'Replace it by an image that opens in a viewer, or leave it out.'
        ) from error


def _decode(file: Any, gray_range: Range = None) -> Image.Image:
    if isinstance(file, str | os.PathLike) and os.path.exists(file) and not os.path.isfile(file):
        raise DataError('the path is a folder, a pipe or a device, not a file')
    with Image.open(file) as image:
        if image.format in PROGRAMS:
            raise DataError(
                f'the file is a program in {image.format}, which vet does not run; save it as PNG'
            )
        layouts = [str(tile[3]) for tile in getattr(image, 'tile', ())]
        is_deep = any(map(DEEP_COLOURS.match, layouts))
        if is_deep and layouts[0].startswith('LA') and gray_range:
            raise DataError(
                'its gray levels have 16 bits beside a transparency, and Pillow reads only 8 of the bits, so '
                'that gray_range cannot choose levels; save it without the transparency'
            )
        rgb = to_rgb(image, gray_range)
        if is_deep:
            _warn_of_few_levels(np.array(rgb, np.uint16) * 257, getattr(image, 'filename', ''))
        return rgb


def _check_size(width: int, height: int) -> None:
    """DataError for an image without pixels, or with more pixels than Pillow's readers accept."""
    if not width or not height:
        raise DataError(f'the image has no pixels: {width} x {height}')
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f'its {width:,} x {height:,} pixels are more than {2 * Image.MAX_IMAGE_PIXELS:,}; set '
            f'PIL.Image.MAX_IMAGE_PIXELS to allow more'
        )


def _from_deep_gray(image: Image.Image, gray_range: Range) -> Image.Image:
    """Modes I, I;16* and F as mode L. Pillow's own `convert` would clip the modes I and I;16* at 255."""
    values = np.array(image)
    if gray_range is None and (values.min() < 0 or values.max() > 65535):
        raise DataError(
            'its integer pixels lie outside 0 … 65535; set model.backbone.preprocessing.gray_range=(LOW, '
            'HIGH)'
        )
    transparent = image.info.get('transparency')
    if isinstance(transparent, int):
        values[values == transparent] = 65535 if gray_range is None else gray_range[1]
    if gray_range is not None:
        return Image.fromarray(_windowed(values, gray_range))
    _warn_of_few_levels(values, getattr(image, 'filename', ''))
    return Image.fromarray(_to_uint8(values.astype(np.uint16)))


def _windowed(values: np.ndarray, gray_range: tuple[float, float]) -> np.ndarray:
    """Gray levels as uint8.

    The low end of the range and below become 0, the high end and above become 255.
    """
    if not np.isfinite(values).all():
        raise DataError('some of its gray levels are not finite numbers')
    low, high = gray_range
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) * (255 / (high - low))).astype(
        np.uint8
    )


def _warn_of_few_levels(values: np.ndarray, name: str = '') -> None:
    """A DataWarning, once in a process, if the levels use only a small part of 16 bits.

    12-bit images are an example. values: (H, W) of gray levels, or (H, W, 3) of colours.
    """
    low, high = int(values.min()), int(values.max())
    if _said or low == high or high - low >= FEW_LEVELS:
        return
    _said.append(name)
    is_gray = values.ndim == 2
    advice = (
        'train with model.backbone.preprocessing.gray_range=(LOW, HIGH), the levels that become black and '
        'white, such as (0, 4095) for 12 bits. The model folder keeps the range for inference.'
        if is_gray
        else 'scale their colours to 8 bits, or to all 16 bits, before vet reads them.'
    )
    warnings.warn(
        DataWarning(
            f'the {"gray levels" if is_gray else "colours"} of {repr(name) if name else "an image"} are '
            f'{low:,} … {high:,}, a small part of the 16 bits from 0 to 65,535: as 8 bits, '
            f'{high // 257 - low // 257 + 1} levels are left. If all images are like this, {advice} This '
            'warning appears once.'
        ),
        stacklevel=4,
    )


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
    if not (values.min() >= 0 and values.max() <= 1):  # in this form, nan is refused too
        raise DataError('its floats do not all lie in [0, 1]; divide by 255 or undo the normalisation')
    return np.rint(values * 255).astype(np.uint8)
