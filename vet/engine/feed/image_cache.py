"""Images that are decoded once, and kept on disk for all epochs and runs, pixel for pixel and of any size.

The cache keeps images after the steps of a transform that draw nothing at random (resize, centre crop) at its
beginning. The other steps draw and compute as without the cache, so results are equal.

The name of a file depends on the images (files: path, size, inode and times of change; other images: their
pixels), on the first steps of the transform, on the settings of the dataset, and on the code that decodes and
resizes. If a transform begins with a random step, such as RandomResizedCrop, whole decoded images are kept.
With a Resize before that step, small images are kept, and crops are taken from them.

Layout: heights, widths and the CRC-32 of the pixels, int64 (N, 3); then the pixels of one image after the
    other, uint8 (H, W, 3).
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageFile, features
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vet.cache_folder import FULL, cache_path, cannot_keep, make_once
from vet.config import Settings
from vet.datasets import image as decoding
from vet.datasets.base import ImageData, ImageDataset, objective_of
from vet.datasets.hold_out import Part
from vet.datasets.multitask import MultiTask
from vet.datasets.torchvision import TorchvisionDataset
from vet.engine.feed.batches import Transforms, in_order, read
from vet.errors import DataError, UserError
from vet.log import say, warn
from vet.transforms.torchvision import begins_as_tensor, split_still

CHUNK = 16  # images that a worker decodes at a time
CODECS = ('jpg', 'libjpeg_turbo', 'zlib', 'libtiff', 'webp', 'jpg_2000', 'avif')
OPENS = (ImageDataset.open, TorchvisionDataset.open)


class NotKeptError(UserError):
    """Images cannot be kept. The message says why."""


class CachedImages(Dataset):
    """The images of a cache file, RGB, with the classes and labels of their dataset.

    Each image is read from the file, and the file is not mapped. So the memory of a process does not grow.
    checked_by: the objective of the dataset, see `set_objective`.
    as_tensors: an image is a uint8 tensor (3, H, W), channels last in memory, in place of a PIL image.
    """

    def __init__(
        self,
        path: Path,
        classes: list[str],
        targets: list[Any],
        as_tensors: bool = False,
        checked_by: object = None,
    ):
        self.path = path
        self.classes = classes
        self.targets = targets
        self.as_tensors = as_tensors
        self.checked_by = checked_by
        self._file = open(path, 'rb')  # stays readable if the folder is deleted meanwhile
        table = np.fromfile(self._file, '<i8', 3 * len(targets))
        self.sizes_N2 = table.reshape(-1, 3)[:, :2]
        self._sums_N = table.reshape(-1, 3)[:, 2]
        self._ends_N = table.nbytes + 3 * self.sizes_N2.prod(1).cumsum()
        self._on: list[torch.Tensor] | None = None

    def __reduce__(self) -> tuple:  # for workers that are not forked
        return CachedImages, (self.path, self.classes, self.targets, self.as_tensors, self.checked_by)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """The bytes of all pixels."""
        return int(3 * self.sizes_N2.prod(1).sum())

    def on(self, device: torch.device, room: float) -> list[torch.Tensor] | None:
        """All images as tensors on a device, read once. None: they need more than `room` bytes."""
        if self._on is None and self.nbytes <= room:
            # as_tensors is set here
            self._on = [
                self[index][0].as_subclass(torch.Tensor).to(device)  # type: ignore[union-attr]  # a tensor
                for index in range(len(self))
            ]
        return self._on

    def __getitem__(self, index: int) -> tuple[Image.Image | tv_tensors.Image, Any]:
        pixels_HW3 = np.empty((*self.sizes_N2[index], 3), np.uint8)
        start = int(self._ends_N[index]) - pixels_HW3.nbytes
        if os.preadv(self._file.fileno(), [pixels_HW3.data], start) != pixels_HW3.nbytes:
            raise DataError(
                f'{str(self.path)!r} ends within image {index}; delete the file, so that its images are '
                'decoded again.'
            )
        if zlib.crc32(pixels_HW3.data) != self._sums_N[index]:
            raise DataError(
                f'{str(self.path)!r} is damaged at image {index}; delete the file, so that its images are '
                'decoded again.'
            )
        image = (
            tv_tensors.Image(torch.from_numpy(pixels_HW3).permute(2, 0, 1))
            if self.as_tensors
            else Image.fromarray(pixels_HW3)
        )
        return image, self.targets[index]


class ImageCache:
    """The images of a run's splits. Each split is kept when it is first used."""

    def __init__(self, settings: Settings, accelerator: Accelerator):
        self.settings = settings
        self._says = accelerator.is_main_process
        self._of_split: dict[str, tuple[object, Transforms]] = {}
        self._told: set[str] = set()  # reasons that were already printed

    def kept(self, split: str, dataset: ImageData, views: Transforms) -> tuple[Any, Transforms]:
        """A split's images after the first steps of each task's view, and the remaining steps of the views.

        If the images cannot be kept: the images and views as given, with a line on the console.
        """
        if split not in self._of_split:
            loader = (self.settings.train if split == 'train' else self.settings.evaluation).dataloader
            try:
                self._of_split[split] = _keep(dataset, views, loader.workers_per_gpu)
            except NotKeptError as error:
                self._of_split[split] = dataset, views
                if self._says and str(error) not in self._told:
                    self._told.add(str(error))
                    warn(f'train.cache_images has no effect on the {split} images: {error}.')
        return self._of_split[split]


def _keep(dataset: ImageData, views: Transforms, workers: int) -> tuple[object, Transforms]:
    parts = {task: split_still(view) for task, view in views.items()}
    left = {task: rest for task, (_, rest) in parts.items()}
    if not isinstance(dataset, MultiTask):
        return cached_images(dataset, parts[None][0], workers, begins_as_tensor(left[None])), left
    return MultiTask(
        {
            task: cached_images(task_data, parts[task][0], workers, begins_as_tensor(left[task]))
            for task, task_data in dataset.tasks.items()
        }
    ), left


def cached_images(
    dataset: Any, still: list[Callable], workers: int = 0, as_tensors: bool = False
) -> CachedImages:
    """All images of a dataset after the transforms `still`, read from their file, or decoded and written.

    Other processes wait. NotKeptError if a change of the images would not be noticed, or if there is no room.
    """
    digest = hashlib.sha256(
        repr((still, *map(metadata.version, ('pillow', 'torchvision')), _decoder())).encode()
    )
    for identity in _identities(dataset):
        digest.update(repr(identity).encode())
    path = cache_path(f'images-{digest.hexdigest()[:32]}.bin')
    try:
        if path.exists() and not _is_whole(path, len(dataset)):
            path.unlink()
        make_once(path, lambda temporary: _fill(temporary, dataset, still, workers, path))
        return CachedImages(
            path, list(dataset.classes), list(dataset.targets), as_tensors, objective_of(dataset)
        )
    except OSError as error:
        raise NotKeptError(cannot_keep(path, error)) from error


def _is_whole(path: Path, count: int) -> bool:
    """Whether the file is as long as its table says. Pixels are checked when they are read."""
    table = np.fromfile(path, '<i8', 3 * count)
    if table.size != 3 * count or (table < 0).any():
        return False
    sizes_N2 = table.reshape(-1, 3)[:, :2].astype(object)  # Python's numbers do not overflow
    return path.stat().st_size == table.nbytes + 3 * int(sizes_N2.prod(1).sum())


def _decoder() -> tuple[object, ...]:
    """Facts that the pixels of a file depend on, beside the file: vet's code, Pillow's libraries and
    Pillow's switch.
    """
    code = hashlib.sha256(Path(decoding.__file__).read_bytes()).hexdigest()
    return code, ImageFile.LOAD_TRUNCATED_IMAGES, *(features.version(name) for name in CODECS)


def _fill(temporary: Path, dataset: ImageData, still: list[Callable], workers: int, path: Path) -> None:
    """Decodes each image once, and writes the file.

    NotKeptError as soon as the estimated size is too large.
    """
    count = len(dataset)
    done = 0
    table_N3 = np.zeros((count, 3), '<i8')
    keys = in_order(range(count), CHUNK)
    say(f'{count:,} images are decoded into {path}')
    with open(temporary, 'wb') as file:
        file.seek(table_N3.nbytes)
        for items in read(
            dataset, {None: v2.Compose([*still, v2.PILToTensor()])}, 0, keys, workers, collate=list
        ):
            for item in items:
                pixels_HW3 = item[0].permute(1, 2, 0).numpy()
                data = pixels_HW3.tobytes()
                table_N3[done] = *pixels_HW3.shape[:2], zlib.crc32(data)
                file.write(data)
                done += 1
            need = file.tell() * count / done
            free = shutil.disk_usage(path.parent).free
            if need > FULL * (free + file.tell()):
                raise NotKeptError(
                    f'{count:,} images take about {need / 2**20:,.0f} MiB, and {str(path.parent)!r} has '
                    f'{free / 2**20:,.0f} MiB free; set VET_CACHE_DIR to a folder with more, or let the '
                    'transform begin with a Resize'
                )
        file.seek(0)
        file.write(table_N3.tobytes())
        file.flush()
        os.fsync(file.fileno())  # otherwise, after a power failure, the name might exist without the pixels


def _identities(dataset: Any) -> Iterator[object]:
    """For each image, facts that differ between images, and that change when the image changes."""
    indices: Sequence[int] = range(len(dataset))
    while isinstance(dataset, Part):
        dataset, indices = dataset.dataset, [dataset.indices[i] for i in indices]
    kind = type(dataset)
    if getattr(kind, '__getitem__', None) is not ImageDataset.__getitem__ or kind.open not in OPENS:
        raise NotKeptError(
            f'{kind.__name__} reads images in another way than vet, so vet would notice no change of them'
        )
    yield {
        name: value
        for name, value in sorted(vars(dataset).items())
        if isinstance(value, str | int | float | tuple | None)
        and name not in ('classes', 'samples', 'targets', 'checked_by')
    }
    for index in indices:
        source = dataset.samples[index][0]
        if isinstance(source, str | os.PathLike):
            try:
                state = os.stat(source)
            except OSError as error:
                raise NotKeptError(f'{os.fspath(source)!r} is no file: {error.strerror}') from error
            yield os.path.abspath(source), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
        else:
            image = dataset.open(source)
            yield image.size, hashlib.sha256(image.tobytes()).digest()
