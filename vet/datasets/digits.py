"""scikit-learn's handwritten digits, which need no download."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vet.datasets.base import ImageDataset, resolve_split
from vet.errors import UserError
from vet.registry import DATASETS


@DATASETS.register_module()
class Digits(ImageDataset):
    """1,797 scanned handwritten digits of 8 x 8 pixels, 16 gray levels (stretched to 0 … 255).

    split: every third image of each digit is 'test' (596 images), the others are 'train' (1,201). The splits
        are stratified. They are the same in every version, and do not depend on `digits`.
    digits: the digits to take, labelled 0 … k-1 in this order. A class name is the digit.
    root: not used.
    The source of a sample is the image itself, uint8 (8, 8).

    Alpaydin & Kaynak 1998, https://archive.ics.uci.edu/dataset/80 (its test part);
    `sklearn.datasets.load_digits`.
    """

    def __init__(self, root: str | Path = 'data', split: str = 'train', digits: Sequence[int] = range(10)):
        [half] = resolve_split(split, ('train', 'test'), type(self).__name__)
        digits = list(digits)
        if not digits or not set(digits) <= set(range(10)) or len(set(digits)) < len(digits):
            raise UserError(
                f'digits are some of 0 … 9, each once, such as (5, 6, 7, 8, 9); given: {digits!r}.'
            )
        images, numbers = _scans()
        held = np.zeros(len(numbers), dtype=bool)
        for digit in range(10):
            held[np.flatnonzero(numbers == digit)[2::3]] = True
        taken = np.flatnonzero((held == (half == 'test')) & np.isin(numbers, digits))
        super().__init__(map(str, digits), [(images[index], digits.index(numbers[index])) for index in taken])


@functools.cache  # a run opens several splits
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 (1797, 8, 8), and the digits (1797,). Nobody writes into them."""
    from sklearn.datasets import load_digits  # takes a second

    images, numbers = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images.flags.writeable = False
    return images, numbers
