"""Features of a frozen backbone, computed once and kept on disk: where only the head trains, each epoch sees the same again.

The file of a set of images is named by the images as the backbone sees them (all their pixels, after the transform), the
backbone, the precision, the batch size and the versions that compute. So runs and seeds share it, and none gets what is not
its own. It lies in $VET_CACHE_DIR, else in ~/.cache/vet, and may be deleted.

The head learns from the cache what it learns without: bit for bit where torch takes the same kernels, and within rounding where
not. On a CPU it does, measured on ViTs, ResNets, Swins and ConvNeXts, but for batches of one image and for heads that begin with
a batch norm, which sums a strided tensor, as a ViT's class tokens are, in another order.
"""

import fcntl
import hashlib
import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from vet.config import Train
from vet.core.model import ImageClassifier
from vet.datasets.image import open_image
from vet.engine.batches import Batch, load
from vet.engine.files import writing
from vet.engine.progress import console
from vet.errors import UserError

View = Callable[[Any], torch.Tensor]


class Features:
    """features_NC: float32, memory-mapped. labels_N: as torch has them."""

    def __init__(self, features_NC: np.ndarray, labels_N: torch.Tensor):
        self.features_NC, self.labels_N = features_NC, labels_N

    def batches(self, keys: Iterable[list[tuple[int, int, int]]], device: torch.device) -> Iterator[Batch]:
        """As batches.load: those that `keys` lists as (epoch, index, weight), but of features (B, C) in place of images."""
        for batch in keys:
            _, indices, weights = zip(*batch)
            rows = list(indices)
            features_BC, weights_B = torch.from_numpy(self.features_NC[rows]), torch.tensor(weights, dtype=torch.float32)
            yield Batch(features_BC.to(device), self.labels_N[rows].to(device), weights_B.to(device))


class _DrawsError(UserError):
    """What must be the same in each epoch drew at random."""


class _Still(Dataset):
    """A dataset, or a transform, whose every draw at random raises: a worker's process hands a UserError on."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __getitem__(self, index: int) -> Any:
        return self._read(self.inner.__getitem__, index)

    def __call__(self, image: Any) -> Any:
        return self._read(self.inner, image)

    def _read(self, read: Callable[[Any], Any], what: Any) -> Any:
        before = _random_state()
        found = read(what)
        if _random_state() != before:
            raise _DrawsError('train.transform or the dataset draws at random')
        return found


def hindrance(model: Any, dataset: Any, view: View, train: Train) -> str | None:
    """Why the features of a training are not the same in each epoch; None where the first image shows no reason."""
    if not all(tuner.head_only for tuner in model.tuners):
        return 'more than the head trains'
    if train.mixup or train.cutmix:
        return 'mixup and cutmix mix images'
    device = next(model.parameters()).device
    try:
        image = _Still(view)(open_image(_Still(dataset)[0][0]))
    except _DrawsError as error:
        return str(error)
    before = _random_state(device)
    with torch.no_grad():
        model.backbone.train()(image[None].to(device))
    return 'the backbone draws at random, such as for dropout' if _random_state(device) != before else None


def cached_features(model: ImageClassifier, dataset: Any, view: View, train: Train, accelerator: Accelerator) -> Features | None:
    """The features of all items, in order: read from their file, or computed and written to it. Other processes wait.

    None, said on the console, where the transform or the dataset draws at random for any item.
    """
    size, workers = train.dataloader.batch_size_per_gpu, train.dataloader.workers_per_gpu
    keys = [[(0, i, 1) for i in range(start, min(start + size, len(dataset)))] for start in range(0, len(dataset), size)]

    def batches(device: torch.device) -> Iterator[Batch]:
        return load(_Still(dataset), {None: _Still(view)}, 0, keys, workers, device)

    versions = [metadata.version(name) for name in ('torch', 'torchvision', 'timm')]
    digest = hashlib.sha256(repr((sorted(model.backbone.identity.items(), key=str), accelerator.mixed_precision,
                                  accelerator.device.type, size, versions)).encode())
    labels, drawn = [], ''
    try:
        for batch in batches(torch.device('cpu')):
            digest.update(batch.images.numpy().tobytes())
            labels.append(batch.labels)
    except _DrawsError as error:
        drawn = str(error)
    if found := [text for text in gather_object([drawn]) if text]:      # a draw may come to light on one process only
        if accelerator.is_main_process:
            console.print(f'train.cache_features has no effect: {found[0]}.', soft_wrap=True)
        return None
    path = Path(os.environ.get('VET_CACHE_DIR') or '~/.cache/vet').expanduser() / f'features-{digest.hexdigest()[:32]}.npy'
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix('.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _compute(model, batches(accelerator.device), len(dataset), path, accelerator)
    return Features(np.load(path, mmap_mode='r'), torch.cat(labels))


@torch.no_grad()
def _compute(model: ImageClassifier, batches: Iterator[Batch], length: int, path: Path, accelerator: Accelerator) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    backbone, done = model.backbone.train(), 0     # as it is in training: in eval, nn.MultiheadAttention takes other kernels
    try:
        features_NC = np.lib.format.open_memmap(temporary, 'w+', np.float32, (length, backbone.num_features))
        for batch in batches:
            with accelerator.autocast():
                features_BC = backbone(batch.images)
            features_NC[done:done + len(features_BC)] = features_BC.float().cpu().numpy()
            done += len(features_BC)
        features_NC.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _random_state(device: torch.device | None = None) -> bytes:
    """Of every generator, that of a GPU too where `device` is one: it changes whenever one draws."""
    on_device = torch.cuda.get_rng_state(device).numpy() if device is not None and device.type == 'cuda' else None
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), on_device))
