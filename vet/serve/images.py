"""Images of requests: decoded from bytes, with limits, and from an allow-list of formats."""

import io
from functools import cache

from PIL import Image

from vet.errors import DataError

# formats that photos have; Pillow's other decoders never see a request
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'HEIF', 'JXL')


@cache
def formats() -> tuple[str, ...]:
    """The formats that the server takes, as far as Pillow and its plugins can read them here."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def opened_image(data: bytes, number: int, most_pixels: int) -> Image.Image:
    """The image in `data`, decoded. number: of the image in its request, for messages.

    DataError for bytes that are no image, and for an image of more than `most_pixels` pixels. The size of an
    image is read before a pixel is decoded.
    """
    known = formats()
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except Image.DecompressionBombError as error:
        raise DataError(
            f'image {number} of the request has far more pixels than {most_pixels:,}, which are allowed. '
            'Send a smaller image.'
        ) from error
    except Exception as error:  # a broken file can make Pillow raise any error
        raise DataError(
            f'image {number} of the request cannot be read: its {len(data):,} bytes are no image of a format '
            f'that the server takes. Allowed: {", ".join(known)}.'
        ) from error
    width, height = image.size
    if width * height > most_pixels:
        raise DataError(
            f'image {number} of the request has {width:,} x {height:,} pixels; allowed: {most_pixels:,} '
            'pixels. Send a smaller image.'
        )
    try:
        image.load()
    except Exception as error:
        raise DataError(
            f'image {number} of the request cannot be decoded: {error or type(error).__name__}. Send an '
            'image that opens in a viewer.'
        ) from error
    return image
