"""Test-time augmentation: a model sees several views of each image, and scores are means over the views.

The views are made of images as the network takes them, so that every way of evaluation has the same views.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from vet.config import Views
from vet.core.objective import Objective
from vet.errors import UserError, shown

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))  # and the centre: the share of the rest above and left


def views_of(images: torch.Tensor, tta: Views) -> list[torch.Tensor]:
    """Images (B, 3, H, W) -> their views, each (B, 3, H, W). Without augmentation: the images themselves."""
    views = [_crop(images, 1 / scale, (0.5, 0.5)) for scale in tta.scales] or [images]
    if tta.five_crops is not None:
        views = [_crop(view, tta.five_crops, corner) for view in views for corner in CORNERS]
    return [*views, *(view.flip(-1) for view in views)] if tta.flip else views


def averaged(
    net: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tta: Views, objective: Objective
) -> torch.Tensor:
    """The outputs (B, …) of `net` whose scores are the means of the scores of the views."""
    views = views_of(images, tta)
    if len(views) == 1:
        return net(views[0])
    return objective.mean(torch.stack([net(view).float() for view in views]))


def refuse_unfit_tta(tta: Views, objective: Objective) -> None:
    """UserError if there are several views, but the objective has no mean of them."""
    if tta != Views():
        objective.mean(torch.from_numpy(objective.example_outputs())[None])


def read_tta(entry: object, where: str) -> Views:
    """The section evaluation.tta of a model folder. None: no augmentation. UserError for other values."""
    if entry is None:
        return Views()
    if isinstance(entry, Mapping):
        try:
            return _views().validate_json(json.dumps(entry))
        except ValidationError:
            pass
    raise UserError(
        f'{where} has {shown(entry)} as evaluation.tta; allowed: a dict with flip (True or False), '
        'five_crops (a number above 0 and below 1, or None) and scales (at most 8 numbers from 1 to 4).'
    )


@cache  # pydantic reads the source of the class, which takes longer than opening the folder
def _views() -> TypeAdapter[Views]:
    return TypeAdapter(Views)


def _crop(images: torch.Tensor, share: float, corner: tuple[float, float]) -> torch.Tensor:
    """The part of `share` of each side, at `corner`, enlarged to the whole."""
    sides = images.shape[-2:]
    height, width = (max(1, round(share * side)) for side in sides)
    if (height, width) == sides:
        return images
    top, left = (round(place * (side - crop)) for place, side, crop in zip(corner, sides, (height, width)))
    cropped = images[..., top : top + height, left : left + width]
    return F.interpolate(cropped, size=sides, mode='bilinear', antialias=True, align_corners=False)
