"""Images with masks: how the pixels of a mask file become class numbers.

A mask file has one number for each pixel (a gray PNG, or a PNG with a palette), or a colour for each pixel.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vet.datasets.base import ImageDataset
from vet.datasets.class_names import class_list
from vet.errors import DataError, UserError
from vet.targets import IGNORED

SEGMENTATION = dict(type='Segmentation')
Pixel = int | Sequence[int]  # a number, or a colour (red, green, blue)
FORMATS = ('PNG', 'TIFF', 'BMP', 'GIF')  # of masks: they keep each number
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Values:
    """The meaning of the pixels in mask files: numbers, or colours (red, green, blue).

    classes: the names of the numbers 0, 1, …; or {name: number}; or {name: colour}.
    ignore: the numbers or colours of pixels without a class. The number 255 is always such a number.
    UserError for a number outside of 0..65,535, and for a colour that is not three numbers in 0..255.
    UserError also for numbers beside colours, and for a number or a colour with several meanings.
    """

    def __init__(self, classes: Sequence[str] | Mapping[str, Pixel], ignore: Sequence[Pixel] = ()):
        if not classes:
            raise UserError('classes is empty. Give the name of each class of the masks.')
        self.names = class_list(list(classes))
        known = list(classes.values()) if isinstance(classes, Mapping) else list(range(len(self.names)))
        self.are_colours = not isinstance(known[0], int)
        self.kind = 'colour' if self.are_colours else 'number'
        codes = [self._code(pixel, 'classes') for pixel in known]
        ignored = [self._code(pixel, 'ignore') for pixel in ignore]
        if not self.are_colours:
            ignored.append(IGNORED)
        for pixel, code in zip(known, codes):
            if codes.count(code) > 1 or code in ignored:
                raise UserError(
                    f'the {self.kind} {pixel} of a mask has several meanings. Give each class a separate '
                    f'{self.kind} that is not in ignore{"" if self.are_colours else f", and not {IGNORED}"}.'
                )
        # the class + 1 of each code; 0 is unknown. np.zeros takes memory only where numbers are written.
        self.table = np.zeros(1 + max(*codes, *ignored, 0), np.int16)
        self.table[ignored] = 1 + IGNORED
        self.table[codes] = range(1, 1 + len(codes))

    def _code(self, pixel: Pixel, setting: str) -> int:
        """A number, or a colour as red * 65,536 + green * 256 + blue."""
        if self.are_colours:
            if isinstance(pixel, list | tuple) and len(pixel) == 3 and all(_is_whole(c, 256) for c in pixel):
                return pixel[0] << 16 | pixel[1] << 8 | pixel[2]
            raise UserError(
                f'{setting} has the colour {pixel!r}; allowed: three whole numbers from 0 to 255, such as '
                '(128, 64, 128).'
            )
        if isinstance(pixel, int) and _is_whole(pixel, 2**16):
            return pixel
        raise UserError(
            f'{setting} has the number {pixel!r}; allowed: whole numbers from 0 to 65,535, or colours '
            '(red, green, blue) for all classes.'
        )

    def _pixels(self, mask: Image.Image, name: str) -> np.ndarray:
        """The code of each pixel, int64 (H, W)."""
        if self.are_colours:
            red, green, blue = np.moveaxis(np.asarray(mask.convert('RGB')).astype(np.int64), 2, 0)
            return red << 16 | green << 8 | blue
        if mask.mode not in ('1', 'L', 'P', 'I') and not mask.mode.startswith('I;16'):
            raise DataError(
                f'the mask {name} has pixels of the mode {mask.mode!r}, and the classes have numbers. Save '
                'the mask as a gray PNG or as a PNG with a palette, or give the colour of each class: '
                'classes={"road": (128, 64, 128), …}.'
            )
        return np.asarray(mask).astype(np.int64)

    def read(self, mask: Image.Image, name: str) -> np.ndarray:
        """A mask as class numbers and 255, uint8 (H, W). DataError with the name for anything else."""
        pixels = self._pixels(mask, name)
        found = self.table[pixels.clip(0, len(self.table) - 1)]
        found[(pixels < 0) | (pixels >= len(self.table))] = 0
        if (wrong := pixels[found == 0]).size:
            code = int(wrong[0])
            pixel = (code >> 16, code >> 8 & 255, code & 255) if self.are_colours else code
            raise DataError(
                f'the mask {name} has the {self.kind} {pixel} in {wrong.size:,} of {pixels.size:,} pixels, '
                f'which is the {self.kind} of none of the {len(self.names)} classes. Correct the mask, add '
                f'the class to `classes`, or leave such pixels out by ignore=[{pixel}].'
            )
        return (found - 1).astype(np.uint8)


def _is_whole(value: object, below: int) -> bool:
    return type(value) is int and 0 <= value < below


class MaskDataset(ImageDataset):
    """Images with masks. Item i is (PIL RGB image, mask), a uint8 array (H, W) of class numbers and 255.

    values: what the numbers in the masks mean. samples: (image, mask) pairs that `open` and `open_mask` read.
    DataError before training for a mask of another size than its image, and for an unknown number,
    and if no pixel of all masks has a class.
    """

    def __init__(self, values: Values, samples: Sequence[tuple[object, object]]):
        super().__init__(values.names, samples, SEGMENTATION)
        del self.targets  # masks are read with their images
        self.values = values
        has_class = False
        for image, mask in self.samples:
            size = self.size(image)
            read = self.read(mask)
            if read.shape != size:
                raise DataError(
                    f'the mask {self.name(mask)} has {read.shape[0]} x {read.shape[1]} pixels (height x '
                    f'width), but its image has {size[0]} x {size[1]}. Resize the mask with nearest pixels, '
                    'or correct the pair.'
                )
            has_class = has_class or bool((read != IGNORED).any())
        if self.samples and not has_class:
            raise DataError(
                f'all pixels of the {len(self.samples):,} masks, such as {self.name(self.samples[0][1])}, '
                'are without a class, so that nothing can be learned or measured. Correct the masks, '
                '`classes` or `ignore`.'
            )

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, mask = self.samples[index]
        return self.open(image), self.read(mask)

    def read(self, source: object) -> np.ndarray:
        """The class numbers of a mask."""
        try:
            with self.open_mask(source) as mask:
                return self.values.read(mask, self.name(source))
        except UserError:
            raise
        except Exception as error:  # a broken file can make Pillow's decoders raise any error
            raise DataError(
                f'cannot read {self.name(source)} as a mask: {error}. Replace the file by a PNG, or leave '
                'its image out.'
            ) from error

    def open_mask(self, source: Any) -> Image.Image:
        """The PIL image of a mask's source."""
        return Image.open(source, formats=FORMATS)

    def size(self, source: Any) -> tuple[int, int]:
        """(H, W) of an upright image. The pixels are not read."""
        try:
            with Image.open(source) as image:
                width, height = image.size
                is_turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
        except Exception:  # Pillow alone does not read the file; `open` may, or names the fault
            width, height = self.open(source).size
            is_turned = False
        return (width, height) if is_turned else (height, width)

    def name(self, source: object) -> str:
        """Words for the source of a mask."""
        return repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else str(source)
