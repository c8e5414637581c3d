"""Transforms that act on an image and its mask together."""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from vet.errors import UserError

CUTS = (v2.CenterCrop, v2.Pad, v2.FiveCrop, v2.TenCrop)  # the result shows another part than the image


class Jointly(v2.Compose):
    """A transform that also acts on the image's mask. Masks are resized by their nearest pixels.

    In `with_mask`, 255 stands as 0 and a class k as k + 1: pixels that a transform adds are 0.
    """

    def with_mask(self, image: object, mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """An image and its mask (H, W), uint8, after the transform."""
        seen, moved = self(image, tv_tensors.Mask(mask + 1))
        return seen, moved.as_subclass(torch.Tensor) - 1


def refuse_other_size(size: tuple[int, int], mask: torch.Tensor) -> None:
    """UserError if an image of size (H, W) has a mask of another size."""
    if tuple(mask.shape) != tuple(size):
        raise UserError(
            f'the mask has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but the image has '
            f'{size[0]} x {size[1]}. Resize the mask with nearest pixels, or correct the pair.'
        )
