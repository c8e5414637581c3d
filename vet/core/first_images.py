"""The first images of a dataset, for tuners that look at images before step 0 (`Tuner.prepare`)."""

from collections.abc import Iterable, Iterator

import torch


def first_images(batches: Iterable, images: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole batches of images (B, 3, H, W) and targets, until they hold `images` images."""
    seen = 0
    for views, targets in batches:
        yield views, targets
        seen += len(views)
        if seen >= images:
            return
