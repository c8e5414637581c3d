"""Checks of transforms before a run: images are normalised once and in the same way, and fit the network.

Used by trainer.py and by `vet test`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from vet.core.modes import in_eval
from vet.datasets.base import by_task, errors_named, gray_range_of, item_name, item_of
from vet.engine.feed.batches import ADVICE, Transforms, opened, viewed
from vet.errors import UserError
from vet.seeding import seeded
from vet.transforms.masks import CUTS, Jointly
from vet.transforms.torchvision import normalisation, steps_of


def refuse_two_normalisations(augment: Callable, view: Callable) -> None:
    """UserError if images are normalised by other numbers in training than in evaluation."""
    ours, theirs = normalisation(augment), normalisation(view)
    if not all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4) for a, b in zip(ours, theirs)):
        raise UserError(
            f'train.transform normalises images by {_told(*ours)}, but images are evaluated by '
            f'{_told(*theirs)}. Leave Normalize out of both, so that images are normalised as the backbone '
            'needs it; or give the same in train.transform and in evaluation.transform.'
        )


def refuse_masks_on_device(model: Any) -> None:
    """UserError if a target is a mask: transforms on the device see images alone."""
    for classifier in model.tasks.values():
        if classifier.objective.dense:
            raise UserError(
                f'train.transform_on is "device", where transforms change only images, but a target of the '
                f'objective {classifier.objective.given["type"]!r} is a mask. Set '
                'train.transform_on to "tensor".'
            )


@torch.no_grad()
def refuse_unfit_views(
    model: Any, dataset: Any, key: str, views: Transforms, accelerator: Accelerator
) -> None:
    """UserError if the transforms of the setting `key` do not fit the network.

    They must make a tensor (3, H, W) of a dataset's first image, for each task, in a size that the network
    takes.
    """
    for task, task_data in by_task(dataset).items():
        classifier = model.for_task(task)
        given, target = item_of(task_data, 0)
        with seeded('view'), errors_named(partial(item_name, task_data, 0), ADVICE):
            image, seen = viewed(views[task], opened(given, gray_range_of(task_data)), target)
        if image.ndim != 3 or image.shape[0] != 3:
            raise UserError(
                f'{key} makes a tensor of shape {tuple(image.shape)} of an image; a network takes (3, H, W).'
            )
        size = tuple(image.shape[1:])
        wanted = classifier.backbone.preprocessing.size
        if classifier.objective.dense:
            _refuse_unfit_masks(key, views[task], size, seen)
        if size == tuple(wanted) or (classifier.objective.dense and not isinstance(views[task], Jointly)):
            continue
        try:
            with in_eval(classifier), accelerator.autocast():
                classifier(image[None].to(accelerator.device))
        except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError, IndexError) as error:
            raise UserError(
                f'{key} makes images of {size} (height, width), which the network does not take: '
                f'{str(error).rstrip(".")}. Let the transform end with the size {tuple(wanted)}, or set '
                f'model.backbone.preprocessing.size.'
            ) from error


def _refuse_unfit_masks(key: str, view: Callable, size: tuple[int, ...], mask: torch.Tensor) -> None:
    """UserError if a transform takes images and masks apart, or cuts images in evaluation."""
    if isinstance(view, Jointly) and tuple(mask.shape) != size:
        raise UserError(
            f'{key} makes images of {size} (height, width), but masks of {tuple(mask.shape)}. Choose '
            'transforms of torchvision.transforms.v2, which act on both.'
        )
    if cut := next((type(step).__name__ for step in steps_of(view) if isinstance(step, CUTS)), None):
        if not isinstance(view, Jointly):
            raise UserError(
                f'{key} has the step {cut}, but a mask is of the whole image. Leave {cut} out: vet sees '
                'an image of any size through windows. A Resize is allowed.'
            )


def _told(mean: list[float], std: list[float]) -> str:
    return (
        f'mean {tuple(round(value, 4) for value in mean)} and std {tuple(round(value, 4) for value in std)}'
    )
