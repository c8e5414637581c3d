"""Refuses settings of model.backbone.kwargs that vet decides itself.

Used by the files of timm and torchvision.
"""

from collections.abc import Mapping
from typing import Any

from vet.errors import UserError


def check_kwargs(kwargs: Mapping[str, object], classifier: bool, channels: str = '') -> None:
    """UserError for a number of classes, which the head decides, and for images without three channels.

    channels: the name of the library's argument for the number of image channels. '': the library has no such
        argument.
    """
    if 'num_classes' in kwargs and not classifier:
        raise UserError(
            f'model.backbone.kwargs.num_classes is {kwargs["num_classes"]!r}, but the backbone gives '
            'features, and the head has the number of classes of the dataset. Leave num_classes out, or '
            'keep the pretrained classifier with model.backbone.classifier=True.'
        )
    if channels and kwargs.get(channels, 3) != 3:
        raise UserError(
            f'model.backbone.kwargs.{channels} is {kwargs[channels]!r}, but vet reads every image as RGB, '
            f'gray ones too; allowed: 3. Leave {channels} out.'
        )


def height_and_width(size: Any) -> tuple[int, int]:
    """(H, W) of a size that a library takes as one int, or as a pair."""
    return (size, size) if isinstance(size, int) else tuple(size)
