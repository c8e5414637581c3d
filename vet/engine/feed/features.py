"""Features: the tensors at the cut of a frozen backbone, computed once per image and kept on disk for all
runs.

The name of a file depends on the images as the backbone sees them (all their pixels, after the transform),
the backbone, the place of the cut, the mode, the precision, the batch size and the versions that compute. So
runs and seeds share the file, and no run gets wrong features. The file lies in $VET_CACHE_DIR, or in
~/.cache/vet, and may be deleted.

The part behind the cut learns the same as without the cache: bit for bit if torch takes the same kernels,
otherwise within rounding. On a CPU, torch takes the same kernels, as measured on ViTs, ResNets, Swins and
ConvNeXts. The exception is a last batch of an epoch with fewer than 16 images: torch has other kernels for
some products of so few rows.
"""

import hashlib
import io
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from importlib import metadata
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from vet.cache_folder import FULL, cache_path, cannot_keep, locked
from vet.config import Dataloader, Settings, Train
from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.multitask import Classifier
from vet.datasets.base import gray_range_of, objective_of
from vet.engine.device import precision_of
from vet.engine.feed.batches import Batch, Keys, Transforms, View, in_order, opened, placed, read
from vet.engine.feed.cut import Cut, NoCutError, Resumed, find_cut
from vet.errors import UserError
from vet.log import say, warn
from vet.transforms.torchvision import split_normalisation

DIGEST_BYTES = hashlib.sha256().digest_size  # at the end of a file


class Features:
    """kept_N: float32 (N, …), mapped from its file. labels_N: the targets, (N,) or (N, …). net: the model
    from the cut on.

    images: keys -> batches of images, for a net that needs images.
    """

    def __init__(
        self,
        net: Resumed,
        kept_N: torch.Tensor,
        labels_N: torch.Tensor,
        images: Callable[[Keys], Iterator[Batch]],
    ):
        self.net = net
        self.kept_N = kept_N
        self.labels_N = labels_N
        self._images = images

    def batches(self, keys: Keys, device: torch.device) -> Iterator[Batch]:
        """The batches of `keys`, with the kept features. They have images only if the net needs images."""
        keys, again = tee(keys)
        read = (
            self._images(keys)
            if self.net.cut.needs_images
            else (self._without_images(listed, device) for listed in keys)
        )
        for batch, listed in zip(read, again):
            yield replace(batch, kept=self.kept_N[[i for _, i, _ in listed]].to(device))

    def _without_images(self, listed: list[tuple[int, int, int]], device: torch.device) -> Batch:
        _, rows, weights = zip(*listed)
        return Batch(
            self.net.cut.blank(len(rows), device),
            self.labels_N[list(rows)].to(device),
            torch.tensor(weights, dtype=torch.float32, device=device),
        )


class FeatureCache:
    """The features of a run's splits. Each split is computed when it is first used."""

    def __init__(self, model: Classifier, settings: Settings, accelerator: Accelerator):
        self.model = model
        self.settings = settings
        self.accelerator = accelerator
        self._of_split: dict[str, Features | None] = {}
        self._told: set[str] = set()  # reasons that were already printed

    def features(self, split: str, dataset: object, views: Transforms) -> Features | None:
        """The features of all items of a split, in order. They are read from their file, or computed and
        written.

        Other processes wait. None, with a line on the console, if features differ in each epoch, or cannot be
        kept.
        """
        if split not in self._of_split:
            features = None
            reason = ''
            try:
                features = self._find(split, dataset, views)
            except NoCutError as error:
                reason = str(error)
            # one process alone may notice a random draw
            if reasons := [text for text in gather_object([reason]) if text]:
                features = None
                if self.accelerator.is_main_process and reasons[0] not in self._told:
                    self._told.add(reasons[0])
                    warn(f'train.cache_features has no effect on the {split} images: {reasons[0]}.')
            self._of_split[split] = features
        return self._of_split[split]

    def _find(self, split: str, dataset: Any, views: Transforms) -> Features:
        train = self.settings.train
        is_train = split == 'train'
        for hinders, reason in (
            (len(self.model.tasks) > 1, 'there are several tasks'),
            (
                getattr(objective_of(dataset), 'dense', False),
                'targets are masks, which have one for each pixel',
            ),
            (train.compile, 'train.compile compiles the network whole'),
            (train.gradient_checkpointing, 'train.gradient_checkpointing computes blocks again'),
            (is_train and (train.mixup or train.cutmix), 'mixup and cutmix mix images'),
            (is_train and train.precision == 'fp8', 'products of float8 are for training, not for features'),
        ):
            if hinders:
                raise NoCutError(reason)
        loader = train.dataloader if is_train else self.settings.evaluation.dataloader
        return cached_features(
            self.model.for_task(None),
            dataset,
            views[None],
            loader,
            self.accelerator,
            train if is_train else None,
        )


class _Still(Dataset):
    """A dataset or a transform.

    A random draw within it raises NoCutError, a UserError, which workers pass on.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        self.classes = getattr(inner, 'classes', None)
        self.gray_range = getattr(inner, 'gray_range', None)
        self.checked_by = objective_of(inner)

    def __getitem__(self, index: int) -> Any:
        return self._read(self.inner.__getitem__, index)

    def __call__(self, image: Any) -> Any:
        return self._read(self.inner, image)

    def _read(self, read: Callable[[Any], object], argument: object) -> object:
        before = _random_state()
        result = read(argument)
        if _random_state() != before:
            raise NoCutError('the transform or the dataset draws at random')
        return result


@torch.no_grad()
def cached_features(
    model: ImageClassifier,
    dataset: Any,
    view: View,
    loader: Dataloader,
    accelerator: Accelerator,
    train: Train | None = None,
) -> Features:
    """The features of a dataset, as in training if `train` is given, otherwise as in evaluation.

    NoCutError if no features are the same each time.
    """
    device = accelerator.device
    size = loader.batch_size_per_gpu
    still, normalise = split_normalisation(view)

    def pixels(keys: Keys) -> Iterator[Batch]:
        return read(
            _Still(dataset),
            {None: _Still(still)},
            0,
            keys,
            loader.workers_per_gpu,
            pin_memory=device.type == 'cuda',
        )

    def normalised(batches: Iterator[Batch]) -> Iterator[Batch]:
        return (placed(batch, normalise, device) for batch in batches)

    first = normalise(_Still(still)(opened(_Still(dataset)[0][0], gray_range_of(dataset))))
    with ExitStack() as mode:
        mode.enter_context(in_eval(model))
        mode.enter_context(accelerator.autocast())
        cut = find_cut(model, first.shape)
        if train:
            model.backbone.train()  # in eval mode, nn.MultiheadAttention takes other kernels
            mode.enter_context(model.features_only() if train.shortcuts else nullcontext())
        before = _random_state(device)
        cut.look(first[None].to(device))
        if _random_state(device) != before:
            raise NoCutError('the network draws at random, such as for dropout, before the first edit')
        keys = in_order(range(len(dataset)), size)
        made = hashlib.sha256(
            repr(
                (
                    sorted(model.backbone.identity.items(), key=str),
                    cut.name,
                    cut.shape,
                    cut.strides,
                    train and train.shortcuts,
                    len(dataset),
                    normalise,
                    precision_of(accelerator),
                    device.type,
                    size,
                    torch.backends.cpu.get_cpu_capability(),
                    *map(metadata.version, ('torch', 'torchvision', 'timm')),
                )
            ).encode()
        )
        stem = f'features-{made.hexdigest()[:16]}'
        seen = hashlib.sha256()
        labels = []

        def looked_at(batches: Iterator[Batch]) -> Iterator[Batch]:
            for batch in batches:
                seen.update(f'{batch.images.dtype} {tuple(batch.images.shape)} '.encode())
                seen.update(batch.images.numpy().data)
                labels.append(batch.labels)
                yield batch

        def file() -> Path:
            return cache_path(f'{stem}-{seen.hexdigest()[:16]}.npy')

        def look_if_any() -> None:
            """Reads the images once, if there may be a file. The images tell which file is theirs."""
            if not labels and any(cache_path(stem).parent.glob(f'{stem}-*.npy')):
                for _ in looked_at(pixels(keys)):
                    pass

        look_if_any()
        if not labels or not _is_whole(file()):
            try:
                with locked(cache_path(stem)) as temporary:
                    look_if_any()  # another process may have written the file meanwhile
                    if not labels or not _is_whole(file()):
                        batches = pixels(keys) if labels else looked_at(pixels(keys))
                        _compute(temporary, cut, normalised(batches), (len(dataset), *cut.shape))
                        os.replace(temporary, file())
            except OSError as error:
                raise NoCutError(cannot_keep(cache_path(stem), error)) from error
    return Features(
        Resumed(model, cut),
        torch.from_numpy(np.load(file(), mmap_mode='c')),
        torch.cat(labels),
        lambda keys: normalised(pixels(keys)),
    )


def _is_whole(path: Path) -> bool:
    """Whether the file exists and ends with the sha256 of all bytes before, as `_compute` writes it."""
    if not path.is_file() or path.stat().st_size <= DIGEST_BYTES:
        return False
    digest = hashlib.sha256()
    left = path.stat().st_size - DIGEST_BYTES
    with open(path, 'rb') as file:
        while left:
            chunk = file.read(min(left, 2**22))
            digest.update(chunk)
            left -= len(chunk)
        return file.read() == digest.digest()


def _compute(temporary: Path, cut: Cut, batches: Iterator[Batch], shape: tuple[int, ...]) -> None:
    """Writes the features. NoCutError if the disk has no room."""
    folder = temporary.parent
    size, free = 4 * math.prod(shape) / 2**20, shutil.disk_usage(folder).free / 2**20
    need = (
        f'the features of {shape[0]:,} images, {" x ".join(map(str, shape[1:]))} numbers each, take '
        f'{size:,.0f} MiB'
    )
    if size > FULL * free:
        raise NoCutError(
            f'{need}, and {str(folder)!r} has {free:,.0f} MiB free; set VET_CACHE_DIR to a folder with more'
        )
    say(f'{need} in {folder}')
    digest = hashlib.sha256()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='<f4', fortran_order=False, shape=shape))
    with open(temporary, 'wb') as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        write(header.getvalue())
        for batch in batches:
            kept = cut.reach(batch.images)
            if kept.shape[1:] != cut.shape:
                raise UserError(
                    f'train.cache_features needs images of one size, but some reach {cut.name!r} as '
                    f'{tuple(kept.shape[1:])} and others as {tuple(cut.shape)}. Set train.cache_features to '
                    'False, or resize the images.'
                )
            write(kept.float().cpu().numpy().tobytes())
        file.write(digest.digest())


def _random_state(device: torch.device | None = None) -> tuple[object, ...]:
    """The state of every generator, with a GPU's if `device` is a GPU. Each draw changes the state."""
    numbers: Any
    _, numbers, *place = np.random.get_state()
    on_device = (
        torch.cuda.get_rng_state(device).numpy().tobytes()
        if device is not None and device.type == 'cuda'
        else None
    )
    return random.getstate(), numbers.tobytes(), *place, torch.get_rng_state().numpy().tobytes(), on_device
