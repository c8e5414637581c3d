"""Pillow's resize of 8-bit images as two products of matrices, so that a graph can hold the resize.

Pillow resizes the rows of an image first, then the columns. Each pass is a weighted sum with weights in units
of 2^-22, and each pass rounds to whole levels 0..255. In float64 these sums are exact, so that the result has
the same levels as Pillow's.

Legend: B images, H and W their height and width, h and w those of the result, K kept and L given positions of
one axis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

UNITS = 2.0**22  # of a weight; Pillow's PRECISION_BITS
Filter = Callable[[torch.Tensor], torch.Tensor]


def _box(x: torch.Tensor) -> torch.Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _bilinear(x: torch.Tensor) -> torch.Tensor:
    return (1 - x.abs()).clamp(min=0)


def _hamming(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0)


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    a = -0.5
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


# the filter of an interpolation, and how far the filter reaches
FILTERS: dict[str, tuple[Filter, float]] = {
    'box': (_box, 0.5),
    'bilinear': (_bilinear, 1.0),
    'hamming': (_hamming, 1.0),
    'bicubic': (_bicubic, 2.0),
    'lanczos': (_lanczos, 3.0),
}


@dataclass(frozen=True)
class Resampling:
    """uint8 images (B, H, W, 3) -> whole levels 0..255 as float64 (B, 3, h, w), as Resize and CenterCrop of
    Pillow images give them.

    resized: the short side after the resize, or (height, width).
    kept: (h, w), the centre that is kept. Where the resized image is smaller, the result is black.
    interpolation: one of FILTERS.
    """

    resized: int | tuple[int, int]
    kept: tuple[int, int]
    interpolation: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        levels = images.permute(0, 3, 1, 2).double()
        height, width = images.shape[1:3]
        tall, wide = self._resized(height, width)
        rows = _rounded(levels @ self._weights(width, wide, self.kept[1]).T)
        return _rounded(self._weights(height, tall, self.kept[0]) @ rows)

    def _resized(self, *sides: int) -> list[torch.Tensor]:
        """The height and the width after the resize, as scalars."""
        if not isinstance(self.resized, int):
            return [_scalar(side) for side in self.resized]
        given = [_scalar(side) for side in sides]
        return [torch.floor(self.resized * side / torch.minimum(*given)) for side in given]

    def _weights(self, length: int, new: torch.Tensor, kept: int) -> torch.Tensor:
        """(K, L): the weights of `length` given positions in each kept one of `new` positions."""
        curve, reach = FILTERS[self.interpolation]
        scale = _scalar(length) / new
        blur = scale.clamp(min=1)  # a smaller image averages, without aliases
        gap = new - kept
        first = torch.where(gap < 0, -torch.floor(-gap / 2), torch.round(gap / 2))  # as CenterCrop rounds
        out_K1 = torch.arange(kept, dtype=torch.float64)[:, None] + first
        center_K1 = (out_K1 + 0.5) * scale
        low_K1 = torch.floor((center_K1 - reach * blur + 0.5).clamp(min=0))
        high_K1 = torch.floor(center_K1 + reach * blur + 0.5)
        given_L = torch.arange(length, dtype=torch.float64)
        is_near = (given_L >= low_K1) & (given_L < high_K1) & (out_K1 >= 0) & (out_K1 < new)
        weights_KL = curve((given_L - center_K1 + 0.5) / blur) * is_near
        total_K1 = weights_KL.sum(1, keepdim=True)
        units_KL = weights_KL / torch.where(total_K1 == 0, 1.0, total_K1) * UNITS
        return torch.sign(units_KL) * torch.floor(units_KL.abs() + 0.5)


def _scalar(value: int) -> torch.Tensor:
    return torch.full((), value, dtype=torch.float64)


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    return torch.floor((sums + UNITS / 2) / UNITS).clamp(0, 255)
