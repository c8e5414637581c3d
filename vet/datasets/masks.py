"""Images with masks: how the pixels of a mask file become class numbers.

A mask file has one number for each pixel: a gray PNG, or a PNG with a palette.
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
UNKNOWN = -1
FORMATS = ('PNG', 'TIFF', 'BMP', 'GIF')  # of masks: they keep each number
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Values:
    """What the numbers in mask files mean.

    classes: the names of the numbers 0, 1, …; or {name: number}.
    ignore: the numbers of pixels without a class, beside 255.
    """

    def __init__(self, classes: Sequence[str] | Mapping[str, int], ignore: Sequence[int] = ()):
        numbers = classes if isinstance(classes, Mapping) else None
        self.names = class_list(list(classes))
        known = list(numbers.values()) if numbers is not None else list(range(len(self.names)))
        for what, given in (('classes', known), ('ignore', ignore)):
            if wrong := [one for one in given if type(one) is not int or not 0 <= one < 2**16]:
                raise UserError(
                    f'{what} has the number {wrong[0]!r}; allowed: whole numbers from 0 to 65,535.'
                )
        if twice := [one for one in known if known.count(one) > 1 or one in (*ignore, IGNORED)]:
            raise UserError(
                f'the number {twice[0]} of a mask has several meanings. Give each class a number of its own '
                f'that is neither in ignore nor {IGNORED}.'
            )
        self.table = np.full(1 + max(*known, *ignore, IGNORED), UNKNOWN, np.int16)
        self.table[known] = range(len(known))
        self.table[[*ignore, IGNORED]] = IGNORED

    def read(self, mask: Image.Image, name: str) -> np.ndarray:
        """A mask as class numbers and 255, uint8 (H, W). DataError with the name for anything else."""
        if mask.mode not in ('1', 'L', 'P', 'I') and not mask.mode.startswith('I;16'):
            raise DataError(
                f'the mask {name} has pixels of the mode {mask.mode!r}; a mask has one number for each '
                'pixel. Save the mask as a gray PNG, or as a PNG with a palette.'
            )
        numbers = np.asarray(mask).astype(np.int64)
        found = self.table[np.clip(numbers, 0, len(self.table) - 1)]
        found[(numbers < 0) | (numbers >= len(self.table))] = UNKNOWN
        if (wrong := numbers[found == UNKNOWN]).size:
            raise DataError(
                f'the mask {name} has the number {wrong[0]} in {wrong.size:,} of {numbers.size:,} pixels, '
                f'which is the number of none of the {len(self.names)} classes. Correct the mask, add the '
                f'class to classes=[…], or leave such pixels out by ignore=[{wrong[0]}].'
            )
        return found.astype(np.uint8)


class MaskDataset(ImageDataset):
    """Images with masks. Item i is (PIL RGB image, mask), a uint8 array (H, W) of class numbers and 255.

    values: what the numbers in the masks mean. samples: (image, mask) pairs that `open` and `open_mask` read.
    DataError before training for a mask of another size than its image, and for an unknown number.
    """

    def __init__(self, values: Values, samples: Sequence[tuple[Any, Any]]):
        super().__init__(values.names, samples, SEGMENTATION)
        del self.targets  # masks are read with their images
        self.values = values
        for image, mask in self.samples:
            size, read = self.size(image), self.read(mask)
            if read.shape != size:
                raise DataError(
                    f'the mask {self.name(mask)} has {read.shape[0]} x {read.shape[1]} pixels (height x '
                    f'width), but its image has {size[0]} x {size[1]}. Resize the mask with nearest pixels, '
                    'or correct the pair.'
                )

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, mask = self.samples[index]
        return self.open(image), self.read(mask)

    def read(self, source: Any) -> np.ndarray:
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
        except OSError:
            width, height = self.open(source).size
            is_turned = False
        return (width, height) if is_turned else (height, width)

    def name(self, source: Any) -> str:
        """Words for the source of a mask."""
        return repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else str(source)
