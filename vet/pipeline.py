"""pipeline: a trained model folder as a function of images."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vet.builders import TASK
from vet.datasets.image import open_image
from vet.engine.device import make_accelerator
from vet.engine.evaluate import best_classes
from vet.errors import DataError, UnknownNameError, UserError
from vet.hub.folders import read_folder
from vet.hub.model_folder import find_model_folder
from vet.hub.presets import PRESETS
from vet.transforms.torchvision import build_transform

Weights = str | Path | Mapping[str, str | Path] | None     # where a backbone's weights are, or {task: where}
ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Mapping)


class Classifier:
    """Images to {'scores': [...], 'labels': [...]}, best first. Made by `pipeline`."""

    def __init__(self, folder: str | Path, device: str | None = None, backbone: Weights = None, task: str | None = None):
        folder = find_model_folder(folder)
        self._accelerator = make_accelerator(device, 'fp32')
        model, transform = read_folder(folder, backbone)
        self.model = model.to(self._accelerator.device)
        self._view = {name: build_transform(transform, **vars(part.backbone.preprocessing))
                      for name, part in self.model.tasks.items()}
        self._task = task
        if task is not None:
            self.model.for_task(task)

    @property
    def classes(self) -> list[str] | dict[str | None, list[str]]:
        """The class names; of a model of several tasks, {task: class names} where none was chosen."""
        return self.model.classes if self._task is None else self.model.for_task(self._task).classes

    def __call__(self, images: Any, topk: int = 5, batch_size: int = 32, task: str | None = None) -> Any:
        """images: a path, an http(s) URL, bytes, a PIL image, an RGB array (H, W, 3), or a dict with one as 'image'; or a list or
        iterator of these.

        One image gives {'scores': floats that sum to at most 1, 'labels': class names}, `topk` of each, best first; a list gives
        a list of these, an iterator an iterator, which reads `batch_size` images at a time.
        task: of a model of several tasks, in place of the one that `pipeline` was given.
        """
        task = self._task if task is None else task
        self.model.for_task(task)
        if topk < 1 or batch_size < 1:
            raise UserError(f'topk is {topk} and batch_size {batch_size}; both must be at least 1.')
        if isinstance(images, ONE_IMAGE) or hasattr(images, 'read'):
            return next(self._classify(iter([images]), topk, 1, task))
        if isinstance(images, (list, tuple)):
            return list(self._classify(iter(images), topk, batch_size, task))
        if hasattr(images, '__iter__'):
            return self._classify(iter(images), topk, batch_size, task)
        raise DataError(f'cannot read an image from {type(images).__name__}; allowed: a path, URL, bytes, PIL image, RGB array, a '
                        f'dict with "image", or a list or iterator of these.')

    def _classify(self, images: Iterator[Any], topk: int, batch_size: int, task: str | None) -> Iterator[dict[str, list]]:
        model, view = self.model.for_task(task), self._view[task]
        done = False
        while not done:
            views: list[torch.Tensor] = []
            while len(views) < batch_size and not done:
                try:
                    views.append(view(open_image(next(images))))
                except StopIteration:
                    done = True
            if views:
                with torch.inference_mode():
                    results = best_classes(model, torch.stack(views).to(self._accelerator.device), topk)
                yield from results


def pipeline(name: str = TASK, /, model: str | Path | None = None, device: str | None = None, backbone: Weights = None,
             task: str | None = None) -> Classifier:
    """The classifier of a model folder (or of a work folder's output): `pipeline('vision-efficient-tuning', folder)(image)`.

    A folder of ModelScope's vision-efficient-tuning models will do as well.

    device: 'cpu', 'cuda', …; None: the best there is. backbone: where the backbone's weights are now, if they have moved.
    task: of a model of several tasks, which one; or 'vision-efficient-tuning', as ModelScope calls the first argument.
    """
    if name != TASK:
        raise UnknownNameError('task', name, [TASK])
    if model is None:
        raise UserError('pipeline needs model=…: the output/ folder of a training run.')
    if not Path(model).is_dir():
        known = ' It is the id of a model to be trained: build_trainer(model=…) trains it.' if str(model) in PRESETS else ''
        raise DataError(f'the model folder {str(model)!r} does not exist.{known} Give the output/ folder of a training run.')
    return Classifier(model, device, backbone, None if task == TASK else task)
