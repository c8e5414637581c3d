"""Random transforms on the device that trains. Each image is a uint8 tensor, and has the same draws as in a
worker.

Used by door.py.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import tee
from typing import Any

import torch

from vet.datasets.base import ImageData, errors_named, item_name
from vet.engine.feed.batches import ADVICE, Batch, Keys, Transforms, placed, read, stacked
from vet.engine.feed.image_cache import CachedImages
from vet.seeding import draws_apart, seed_everything
from vet.transforms.torchvision import split_at_tensor, split_normalisation

SHARE = 0.25  # the largest share of a GPU's free memory, before the first step, for images
# (images, labels, weights, task)
Items = Iterator[tuple[Sequence[torch.Tensor], Sequence[Any], Sequence[int], str | None]]


def load_on_device(
    dataset: ImageData, transforms: Transforms, seed: int, keys: Keys, workers: int, device: torch.device
) -> Iterator[Batch]:
    """The same as batches.load, for transforms that begin as tensors. Workers stop at the tensor.

    If the images of a cache fit into a GPU's memory, they stay there, and need no workers.
    """
    parts = {task: split_at_tensor(transform) for task, transform in transforms.items()}
    firsts = {task: first for task, (first, _) in parts.items()}
    rests = {task: split_normalisation(rest) for task, (_, rest) in parts.items()}
    keys, again = tee(keys)
    there = dataset.on(device, SHARE * _free_bytes(device)) if isinstance(dataset, CachedImages) else None
    batches = (
        _sent(dataset, firsts, seed, keys, workers, device)
        if there is None
        else _picked(there, dataset.targets, keys)
    )
    for (images, labels, weights, task), listed in zip(batches, again):
        transform, normalise = rests[task]
        seen = []
        with draws_apart(device):
            for image, (epoch, index, _) in zip(images, listed):
                with errors_named(partial(item_name, dataset, index), ADVICE):
                    seed_everything(seed, 'image', epoch, index)
                    seen.append(transform(image))
        yield placed(stacked(seen, labels, weights, task), normalise, device)


def _picked(images: Sequence[torch.Tensor], targets: Sequence[object], keys: Keys) -> Items:
    for listed in keys:
        _, indices, weights = zip(*listed)
        copies = [images[i].clone() for i in indices]  # a transform may write into an image
        yield copies, [targets[i] for i in indices], weights, None


def _sent(
    dataset: ImageData, firsts: Transforms, seed: int, keys: Keys, workers: int, device: torch.device
) -> Items:
    for flat, shapes, *others in read(
        dataset, firsts, seed, keys, workers, _flattened, device.type == 'cuda'
    ):
        parts = flat.to(device, non_blocking=True).split([math.prod(shape) for shape in shapes])
        yield [pixels.view(shape).permute(2, 0, 1) for pixels, shape in zip(parts, shapes)], *others


def _flattened(items: list[tuple[torch.Tensor, Any, int, str | None]]) -> tuple:
    """All pixels in one tensor, the shapes (H, W, C), labels, weights and the task.

    One tensor is better than many, because each tensor from a worker passes through its own file.
    """
    images, labels, weights, tasks = zip(*items)
    rows = [image.as_subclass(torch.Tensor).permute(1, 2, 0) for image in images]
    return torch.cat([row.flatten() for row in rows]), [row.shape for row in rows], labels, weights, tasks[0]


def _free_bytes(device: torch.device) -> int:
    """The free memory of a GPU. 0 for a device without memory of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else 0
