"""The answer of a network for an image of any size, from windows of the size that the network takes."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

Net = Callable[[torch.Tensor], torch.Tensor]


def over_windows(
    net: Net, images: torch.Tensor, window: tuple[int, int], overlap: float = 0.5
) -> torch.Tensor:
    """images (B, 3, H, W) of any size -> logits (B, K, H, W): the mean over all windows of a pixel.

    net: images (B, 3, *window) -> logits (B, K, *window).
    overlap: the least share of a window that the next window sees too, 0 up to, not including, 1.
    A smaller image is padded with zeros, the mean color, on the right and at the bottom.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    tops, lefts = (
        starts(whole, size, overlap) for whole, size in zip(padded.shape[-2:], window, strict=True)
    )
    if len(tops) == len(lefts) == 1:
        return net(padded)[..., :height, :width]
    total = None
    count = padded.new_zeros(padded.shape[-2:])
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = net(padded[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[place] += logits
            count[place] += 1
    assert total is not None
    return (total / count)[..., :height, :width]


def starts(whole: int, size: int, overlap: float) -> list[int]:
    """The first pixels of windows of `size` pixels that cover `whole` pixels, at even distances."""
    rest = whole - size
    number = 1 + math.ceil(rest / max(1, int(size * (1 - overlap))))
    return [rest * place // max(1, number - 1) for place in range(number)]
