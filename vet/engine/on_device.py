"""Random transforms on the device that trains: each image, a uint8 tensor, with the draws that it has in a worker.

Imported by trainer.py alone.
"""

from collections.abc import Iterator, Sequence
from itertools import tee
from typing import Any

import torch

from vet.engine.batches import Batch, Keys, Transforms, placed, read, stacked, told
from vet.engine.image_cache import CachedImages
from vet.engine.seeding import draws_apart, seed_everything
from vet.transforms.torchvision import split_at_tensor, split_normalisation

SHARE = 0.25            # of the memory that is free on a GPU before the first step: more no images may take
Items = Sequence[tuple[torch.Tensor, int, int, str | None]]     # image, label, weight, task


def load_on_device(dataset: Any, transforms: Transforms, seed: int, keys: Keys, workers: int, device: torch.device
                   ) -> Iterator[Batch]:
    """As batches.load of transforms that begin as tensors, but that workers end with the tensor. Images of a cache lie on a GPU for
    good where they fit, and need no workers."""
    parts = {task: split_at_tensor(transform) for task, transform in transforms.items()}
    firsts = {task: first for task, (first, _) in parts.items()}
    rests = {task: split_normalisation(rest) for task, (_, rest) in parts.items()}
    keys, again = tee(keys)
    if isinstance(dataset, CachedImages) and dataset.nbytes <= SHARE * _free_bytes(device):
        batches = _resident(dataset, keys, device)
    else:
        batches = read(dataset, firsts, seed, keys, workers, _plain, device.type == 'cuda')
    for items, listed in zip(batches, again):
        transform, normalise = rests[items[0][3]]
        seen = []
        with draws_apart(device):
            for (image, *others), (epoch, index, _) in zip(items, listed):
                with told(dataset, index):
                    seed_everything(seed, 'image', epoch, index)
                    seen.append((transform(image.to(device, non_blocking=True)), *others))
        yield placed(stacked(seen), normalise, device)


def _resident(dataset: CachedImages, keys: Keys, device: torch.device) -> Iterator[Items]:
    images = [dataset[index][0].to(device) for index in range(len(dataset))]
    for listed in keys:
        yield [(images[index], dataset.targets[index], weight, None) for _, index, weight in listed]


def _plain(items: Items) -> Items:
    """As tensors that pass from a worker without a copy."""
    return [(image.as_subclass(torch.Tensor), label, weight, task) for image, label, weight, task in items]


def _free_bytes(device: torch.device) -> int:
    """0 where the device has no memory of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else 0
