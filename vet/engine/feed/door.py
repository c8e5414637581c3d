"""The door of the data: which images make up a step, how vet reads them, and what vet keeps of them.

No file outside this folder imports another file of the folder.

| file | content |
|---|---|
| batches.py | the order of training, and the loader that reads batches |
| sampling.py | the samplers: `train.sampler` |
| on_device.py | random transforms on the device that trains |
| image_cache.py | images that are decoded once: `train.cache_images` |
| features.py | the input of the part that trains, computed once: `train.cache_features` |
| cut.py | where this part begins in a network |
| views.py | checks of transforms before a run |

If vet keeps features, the features stand in place of the images. Otherwise, the images come from the image
cache, if the cache has them. Otherwise, the images come from the dataset.
"""

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator

from vet.config import Settings
from vet.core.multitask import Classifier
from vet.datasets.base import Datasets
from vet.engine.feed.batches import Batch, Order, Transforms, View, in_order, load, opened
from vet.engine.feed.features import FeatureCache, Features
from vet.engine.feed.image_cache import ImageCache
from vet.engine.feed.on_device import load_on_device
from vet.engine.feed.sampling import samplers_of
from vet.engine.feed.views import refuse_masks_on_device, refuse_two_normalisations, refuse_unfit_views

__all__ = [
    'Batch',
    'Features',
    'Feed',
    'Order',
    'Transforms',
    'View',
    'in_order',
    'load',
    'opened',
    'refuse_masks_on_device',
    'refuse_two_normalisations',
    'refuse_unfit_views',
]


class Feed:
    """The data of a run. data: the datasets, by split.

    Nothing is kept before `keep_images` and `keep_features`, and nothing after `forget`.
    """

    def __init__(self, data: Datasets, settings: Settings, accelerator: Accelerator):
        self._data = data
        self._settings = settings
        self._accelerator = accelerator
        self._images: ImageCache | None = None
        self._kept_features: FeatureCache | None = None

    def has(self, split: str) -> bool:
        """Whether the run has a split."""
        return self._data.get(split) is not None

    def keep_images(self) -> None:
        """From now on, keeps each split's images, if `train.cache_images` says so."""
        if self._settings.train.cache_images:
            self._images = ImageCache(self._settings, self._accelerator)

    def keep_features(self, model: Classifier) -> None:
        """From now on, keeps each split's features of the model, if `train.cache_features` says so."""
        if self._settings.train.cache_features:
            self._kept_features = FeatureCache(model, self._settings, self._accelerator)

    def forget(self) -> None:
        """Drops both caches. Their files stay."""
        self._images = self._kept_features = None

    def order(self) -> Order:
        """The order of training, which all processes share."""
        train = self._settings.train
        data = self._data['train']
        accelerator = self._accelerator
        return Order(
            len(data),
            train.dataloader.batch_size_per_gpu * accelerator.num_processes,
            train.accumulate,
            self._settings.seed,
            accelerator.process_index,
            accelerator.num_processes,
            tuple(len(dataset) for dataset in getattr(data, 'tasks', {}).values()),
            samplers_of(train.sampler, data),
        )

    def batches(self, order: Order, step: int, views: Transforms) -> Iterator[Batch]:
        """This process's batches from step `step` to the end of training.

        Nothing is read before the first is used.
        """
        first = step // order.steps
        train = self._settings.train
        device = self._accelerator.device
        keys = (
            key
            for epoch in range(first, train.max_epochs)
            for key in order.keys(epoch, step % order.steps if epoch == first else 0)
        )
        features = self.features('train', views)
        if features:
            yield from features.batches(keys, device)
            return
        reads = load_on_device if train.transform_on == 'device' else load
        dataset, left = self.source('train', views)
        yield from reads(dataset, left, self._settings.seed, keys, train.dataloader.workers_per_gpu, device)

    def features(self, split: str, views: Transforms) -> Features | None:
        """The kept features of a split's images. None: no features are kept."""
        if self._kept_features is None:
            return None
        return self._kept_features.features(split, *self.source(split, views))

    def training_once(self, views: Transforms) -> tuple[Any, Transforms, Features | None]:
        """The training images and views of evaluation for one pass, and the kept features, if any."""
        dataset = self._data['train']
        kept = self._kept_features and self._kept_features.features('training', dataset, views)
        return dataset, views, kept or None

    def source(self, split: str, views: Transforms) -> tuple[Any, Transforms]:
        """A split's images, kept or not, and the steps of their views that are left to do."""
        dataset = self._data[split]
        return self._images.kept(split, dataset, views) if self._images else (dataset, views)
