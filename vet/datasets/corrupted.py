"""A dataset whose images are damaged by one of ImageNet-C's corruptions.

Hendrycks and Dietterich 2019, arXiv:1903.12261. The formulas and the strengths are those of the authors'
code. The authors damage images of 224 x 224 pixels. Here the image is damaged as the dataset gives it.
"""

import io
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal
from zlib import crc32

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from vet.datasets.base import ImageDataset
from vet.errors import UnknownNameError, UserError
from vet.registry import DATASETS

Pixels = np.ndarray  # (H, W, 3), float64, 0 … 1


def gaussian_noise(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    return x + draw.normal(size=x.shape, scale=strength)


def shot_noise(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    return draw.poisson(x * strength) / strength


def impulse_noise(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    """Salt and pepper: a share of the numbers becomes 0 or 1."""
    return np.where(draw.random(x.shape) < strength, draw.integers(0, 2, x.shape), x)


def gaussian_blur(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    return gaussian_filter(x, (strength, strength, 0), mode='nearest')


def brightness(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    """Adds to the value of HSV, which is the largest channel. Hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    lighter = np.clip(value + strength, 0, 1)
    return np.where(value > 0, x * lighter / np.where(value > 0, value, 1), lighter)


def contrast(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * strength + mean


def pixelate(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    image = _image(x)
    small = image.resize([max(int(side * strength), 1) for side in image.size], Image.Resampling.BOX)
    return _pixels(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, strength: float, draw: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    _image(x).save(file, 'JPEG', quality=strength)
    return _pixels(Image.open(file))


Corruption = Callable[[Pixels, float, np.random.Generator], Pixels]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {  # name: (what it does, strengths 1 to 5)
    'gaussian_noise': (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    'shot_noise': (shot_noise, (60, 25, 12, 5, 3)),
    'impulse_noise': (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    'gaussian_blur': (gaussian_blur, (1, 2, 3, 4, 6)),
    'brightness': (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    'contrast': (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    'pixelate': (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    'jpeg_compression': (jpeg_compression, (25, 18, 15, 10, 7)),
}


@DATASETS.register_module()
class Corrupted(ImageDataset):
    """The images of `dataset`, damaged in one way. The same image is always damaged in the same way.

    dataset: a config entry, such as dict(type='Flowers102', split='test').
    corruption: gaussian_noise, shot_noise, impulse_noise, gaussian_blur, brightness, contrast, pixelate or
        jpeg_compression, as in ImageNet-C. gaussian_blur is an extra corruption of ImageNet-C. Its blurs by
        defocus, glass, motion and zoom, its weather and its elastic transform are not here.
    severity: 1 to 5, as in ImageNet-C.
    """

    def __init__(
        self,
        dataset: Mapping[str, object],
        corruption: str,
        severity: Literal[1, 2, 3, 4, 5] = 3,
        root: object = 'data',
    ):
        if corruption not in CORRUPTIONS:
            raise UnknownNameError('corruption', corruption, CORRUPTIONS)
        self.whole: Any = DATASETS.build(dict(dataset), root=root)
        if not isinstance(self.whole, ImageDataset):
            raise UserError(
                f'Corrupted has the dataset {type(self.whole).__name__}; allowed: one dataset of images and '
                'targets, such as dict(type="ImageFolder", path=…).'
            )
        self.name = corruption, severity
        self.corrupt, strengths = CORRUPTIONS[corruption]
        self.strength = strengths[severity - 1]
        super().__init__(self.whole.classes, self.whole.samples, getattr(self.whole, 'objective', None))

    def open(self, source: object) -> Image.Image:
        self.whole.gray_range = self.gray_range
        pixels = _pixels(self.whole.open(source))
        seed = crc32(pixels.tobytes())
        return _image(np.clip(self.corrupt(pixels, self.strength, np.random.default_rng(seed)), 0, 1))

    def identity(self, source: object) -> Hashable:
        return self.name, self.whole.identity(source)


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image) / 255


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray((x * 255).astype(np.uint8))
