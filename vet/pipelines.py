"""pipeline: makes a function of images from a trained model folder."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from vet.ahead import ahead
from vet.config import Views
from vet.core.augmented import averaged
from vet.core.backbone import Backbone
from vet.core.budget import bounded
from vet.core.objective import Answer, Objective, refuse_counts, refuse_share
from vet.core.tuned_model import TunedModel
from vet.datasets.base import errors_named
from vet.datasets.image import open_image
from vet.engine.device import make_accelerator
from vet.errors import DataError, UnknownNameError, UserError, shown
from vet.hub.folders import read_folders
from vet.metrics.nearest import nearest
from vet.own_backbone import backbone_of_folder
from vet.registry import TASK
from vet.transforms.torchvision import build_transform

# where a backbone's weights are, or {task: where}; or a backbone
Weights = str | Path | Backbone | Mapping[str, str | Path] | None
Folders = str | Path | Mapping[str, str | Path]
USUAL = 5  # labels of an image
Seen = tuple[str | None, torch.Tensor, tuple[int, int]]  # the task, the view and the size of an image
ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Mapping)


class Classifier:
    """Images to the answers of the objective, such as {'scores': [...], 'labels': [...]}.

    Made by `pipeline`.
    """

    def __init__(
        self, folder: Folders, device: str | None = None, backbone: Weights = None, task: str | None = None
    ):
        self._accelerator = make_accelerator(device, 'fp32')
        model, transforms, self._tta = read_folders(folder, backbone)
        self.model = model.to(self._accelerator.device)
        with bounded(repr(folder)):
            self._view = {
                name: build_transform(
                    classifier.objective.evaluation_transform(transforms[name]),
                    **vars(classifier.backbone.preprocessing),
                )
                for name, classifier in self.model.tasks.items()
            }
            self._try()
        self._task: str | None = None
        if task is not None:
            self.use(task)

    def _try(self) -> None:
        """Transforms one small image for each task. A folder may name transforms that do not fit together."""
        for name, view in self._view.items():
            shape = tuple(view(Image.new('RGB', (64, 48))).shape)
            wanted = (3, *self.model.for_task(name).backbone.preprocessing.size)
            if shape != wanted and not self.model.for_task(name).objective.dense:
                with torch.inference_mode():
                    self.model.for_task(name)(torch.zeros(1, *shape, device=self._accelerator.device))

    def use(self, task: str) -> None:
        """Chooses the task of calls that name no task. For several folders, no weight is touched."""
        self.model.for_task(task)
        self._task = task

    def rows(self, answer: dict[str, Any], task: str | None = None) -> list[tuple[str, str]]:
        """The answer for an image as rows of a table: a text, and a number as text."""
        return self.model.for_task(self._task if task is None else task).objective.rows(answer)

    @property
    def classes(self) -> list[str] | dict[str | None, list[str]]:
        """The class names. For a model of several tasks without a chosen task: {task: class names}."""
        return self.model.classes if self._task is None else self.model.for_task(self._task).classes

    def __call__(
        self,
        images: object,
        topk: int | None = None,
        batch_size: int = 32,
        task: str | Sequence[str] | None = None,
        on_error: Literal['raise', 'return'] = 'raise',
        workers: int = 0,
        threshold: float | None = None,
    ) -> Any:
        """Scores of images.

        images: a path, an http(s) URL, bytes, a PIL image, an RGB array (H, W, 3), or a dict with one of
            these as 'image'; or a list or iterator of these.
        task: for a model of several tasks or of several folders: the task, in place of the task given to
            `pipeline`. For several folders, a list of images may have a list of tasks, one per image. If the
            tuners can mix, a batch is one forward.
        topk: the largest number of labels of an image. None: 5, or for several labels: all.
        SingleLabel: an image gives {'scores': floats that sum to at most 1, 'labels': class names}, best
        first. MultiLabel: {'scores': floats in 0..1, 'labels': class names}, of every class whose score is at
        least its threshold, best first. Regression: {name: number}, in the user's units. Segmentation:
        {'masks': arrays (H, W) of 0 and 1 in the size of the image, 'labels', 'scores'}, the largest mask
        first. A list gives a list of such dicts. An iterator gives an iterator, which reads `batch_size`
        images at a time.
        on_error: 'raise' raises the error of an image that cannot be read. An iterator raises the error at
            the place of the image, and goes on with the next image. 'return' gives the error, a UserError, in
            the place of the answer.
        workers: the number of threads that open images while the network computes. They read one more batch
            of an iterator. 0: no thread.
        threshold: 0..1. If no label has at least this score, the label is 'unsure', with the best score. A
            model of numbers takes no threshold.
        """
        tasks: Iterable[str | None] = () if task is None else task
        if task is None or isinstance(task, str):
            chosen = self._task if task is None else task
            self.model.for_task(chosen)
            tasks = itertools.repeat(chosen)
        elif (
            not isinstance(self.model, TunedModel)
            or not isinstance(images, (list, tuple))
            or len(task) != len(images)
        ):
            raise UserError(
                'task is a list. Only a pipeline of several folders takes a list of tasks, with one task for '
                'each image of a list of images.'
            )
        refuse_counts(topk=1 if topk is None else topk, batch_size=batch_size)
        refuse_counts(least=0, workers=workers)
        if on_error not in ('raise', 'return'):
            raise UnknownNameError('on_error', on_error, ['raise', 'return'])
        if threshold is not None:
            refuse_share('threshold', threshold)
            for name in {*(task if isinstance(task, (list, tuple)) else [task or self._task])}:
                self.model.for_task(name).objective.refuse_threshold()
        options = Options(topk, threshold)
        feed = (batch_size, workers)
        if isinstance(images, ONE_IMAGE) or hasattr(images, 'read'):
            return next(Answers(self._classify([images], tasks, options, *feed), on_error))
        if isinstance(images, (list, tuple)):
            return list(Answers(self._classify(images, tasks, options, *feed), on_error))
        if hasattr(images, '__iter__'):
            return Answers(self._classify(images, tasks, options, *feed), on_error)
        raise DataError(
            f'cannot read an image from {type(images).__name__}; allowed: a path, URL, bytes, PIL image, RGB '
            'array, a dict with "image", or a list or iterator of these.'
        )

    def nearest(
        self, images: object, gallery: object, k: int = 5, batch_size: int = 32, task: str | None = None
    ) -> Any:
        """The k images of a gallery that are the most similar, for a model of the objective Embedding.

        images: the same as for a call, but no iterator. An empty list gives an empty list.
        gallery: a list of images; or their answers {'vector': …}, so that the gallery is computed once.
        An image gives {'indices': places in the gallery, 'scores': cosines in -1..1}, the most similar first.
        A list gives a list of such dicts.
        """
        refuse_counts(k=k)
        objective = self.model.for_task(self._task if task is None else task).objective
        if not objective.embeds:
            raise UserError(
                f'nearest compares vectors, but the objective of the model is {objective.given["type"]!r}. '
                'Train a model with model.objective=dict(type="Embedding").'
            )
        if not isinstance(gallery, (list, tuple)) or not gallery:
            raise UserError(
                f'gallery is {shown(gallery)}; gallery must be a list of images, or of their answers, with '
                'at least one.'
            )
        is_known = all(isinstance(each, Mapping) and 'vector' in each for each in gallery)
        known = gallery if is_known else self(gallery, batch_size=batch_size, task=task)
        is_one = not isinstance(images, (list, tuple))
        asked = self([images] if is_one else images, batch_size=batch_size, task=task)
        if not asked:
            return []
        vectors = np.array([answer['vector'] for answer in asked])
        places, cosines = nearest(vectors, _gallery(known, vectors.shape[1]), k)
        found = [dict(indices=row.tolist(), scores=near.tolist()) for row, near in zip(places, cosines)]
        return found[0] if is_one else found

    def _classify(
        self,
        images: Iterable[object],
        tasks: Iterable[str | None],
        options: 'Options',
        batch_size: int,
        workers: int,
    ) -> Iterator[Answer | Exception]:
        """The answer for each image, or the error of the image."""
        numbered = zip(_with_error(images), tasks, itertools.count())
        seen = ahead(self._seen_or_error, numbered, workers, batch_size)
        with closing(seen):
            while batch := list(itertools.islice(seen, batch_size)):
                opened = [each for each in batch if not isinstance(each, Exception)]
                answers = iter(self.answers(opened, [options] * len(opened)))
                # outside of inference_mode, or the caller would run in inference mode meanwhile
                for each in batch:
                    yield each if isinstance(each, Exception) else next(answers)

    def answers(self, batch: Sequence[Seen], options: Sequence['Options']) -> list[Answer]:
        """The answers for images as `seen_in_size` gives them, in one forward if the tasks allow.

        options: for each image.
        """
        if not batch:
            return []
        names, views, _ = zip(*batch)
        objectives = [self.model.for_task(name).objective for name in names]
        with torch.inference_mode():
            sizes = {view.shape for view in views}
            if len(sizes) > 1 or any(objective.dense for objective in objectives):
                return [self._answer(seen, option) for seen, option in zip(batch, options)]
            images = torch.stack(views).to(self._accelerator.device)
            if len(set(names)) == 1:
                outputs = averaged(self.model.for_task(names[0]), images, self._tta[names[0]], objectives[0])
                return told(objectives[0], outputs, options)
            if any(views != Views() for views in self._tta.values()):
                raise UserError(
                    'a folder has evaluation.tta, so that its images are seen several times; then all '
                    'images of a call have one task. Call the pipeline once for each task.'
                )
            found = []
            for objective, logits, option in zip(objectives, self.model(images, list(names)), options):
                found += told(objective, logits[None], [option])
            return found

    def views(self, task: str | None = None) -> Views:
        """The views of test-time augmentation of a task."""
        return self._tta[self._task if task is None else task]

    def view(self, task: str | None = None) -> Callable[[Any], torch.Tensor]:
        """The transform of the images of a task."""
        return self._view[self._task if task is None else task]

    def seen(self, image: object, task: str | None = None, number: int = 0) -> torch.Tensor:
        """An image as the network takes it, (3, H, W), normalised. number: for messages."""
        return self.seen_in_size(image, task, number)[1]

    def seen_in_size(self, image: object, task: str | None = None, number: int = 0) -> Seen:
        """The task, the image as the network takes it, and the size (H, W) of the image itself."""
        name = self._task if task is None else task
        return name, *self._seen(image, name, number)

    def _answer(self, seen: Seen, options: 'Options') -> Answer:
        """The answer for one image. Masks have the size of the image."""
        name, view, size = seen
        model = self.model.for_task(name)
        if not model.objective.dense:
            return self.answers([seen], [options])[0]
        outputs = model.of_any_size(view[None].to(self._accelerator.device))
        return told(model.objective, model.objective.fitted(outputs, size), [options])[0]

    def _seen_or_error(self, given: tuple[object, str | None, int]) -> Seen | Exception:
        image, task, _ = given
        if isinstance(image, _SourceError):
            return image.error
        try:
            return task, *self._seen(*given)
        except UserError as error:
            return error

    def _seen(self, image: object, task: str | None, number: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """An image as the network takes it, (3, H, W), and the size (H, W) of the image itself.

        A DataError names the image by its number, from 0.
        """
        path = f' ({os.fspath(image)!r})' if isinstance(image, str | os.PathLike) else ''
        with errors_named(
            lambda: f'image {number} of those given{path}',
            'Give another image, or another evaluation.transform.',
        ):
            opened = open_image(image, self.model.for_task(task).backbone.preprocessing.gray_range)
            return self._view[task](opened), (opened.height, opened.width)


@dataclass(frozen=True)
class Options:
    """The options of a call, for all its images. See `Classifier.__call__`."""

    topk: int | None = None
    threshold: float | None = None


def told(objective: Objective, outputs: torch.Tensor, options: Sequence[Options]) -> list[Answer]:
    """The answers for a model's outputs (B, …). options: for each image."""
    found: list[Answer] = []
    for option, same in itertools.groupby(options):
        rows = outputs[len(found) : len(found) + len(list(same))]
        answers = objective.answers(rows, option.topk, USUAL)
        if option.threshold is not None:
            answers = [objective.doubt(answer, option.threshold) for answer in answers]
        found += answers
    return found


@dataclass(frozen=True)
class _SourceError:
    """An error that the caller's iterator raised."""

    error: Exception


def _with_error(images: Iterable[object]) -> Iterator[object]:
    """The images. An error of the source is the last item, so that all images before it get answers."""
    try:
        yield from images
    except Exception as error:  # the caller's own iterator may raise any error
        yield _SourceError(error)


def _gallery(answers: Sequence[Mapping[str, Any]], size: int) -> np.ndarray:
    """The vectors (N, size) of answers. UserError for an answer of another model, and for other values."""
    for place, answer in enumerate(answers):
        try:
            vector = np.asarray(answer['vector'], dtype=float)
        except (TypeError, ValueError):
            vector = np.empty(0)
        if vector.shape != (size,) or not np.isfinite(vector).all():
            raise UserError(
                f'gallery[{place}] has the vector {shown(answer["vector"])}; the vectors of this model have '
                f'{size} finite numbers. Compute the gallery with this model: gallery = pipeline(images).'
            )
    return np.array([answer['vector'] for answer in answers], dtype=float)


class Answers(Iterator[Any]):
    """The answers for the images of an iterator.

    An image that cannot be read raises its error, or gives the error, at its place. The next call goes on
    with the next image.
    """

    def __init__(self, found: Iterator[Answer | Exception], on_error: str):
        self._found = found
        self._on_error = on_error

    def __next__(self) -> Any:
        answer = next(self._found)
        is_returned = self._on_error == 'return' and isinstance(answer, UserError)
        if isinstance(answer, Exception) and not is_returned:
            raise answer
        return answer


def pipeline(
    name: Folders = TASK,
    /,
    model: Folders | None = None,
    device: str | None = None,
    backbone: Weights = None,
    task: str | None = None,
    network: nn.Module | None = None,
) -> Classifier:
    """The classifier of a model folder: `pipeline(folder)(image)`.

    ModelScope's form is `pipeline('vision-efficient-tuning', folder)(image)`.

    model: a model folder, a work folder, a folder of ModelScope's vision-efficient-tuning models, or the id
        'owner/name' or 'owner/name@revision' of a model on the Hugging Face hub or ModelScope. {name: folder,
        …} holds the models of several folders on one frozen backbone; each name is then a task:
        `classify = pipeline('vision-efficient-tuning', {'flowers': …, 'cars': …})`, `classify(image,
        task='cars')`.
    device: 'cpu', 'cuda', …; None: the best device of the machine.
    backbone: where the backbone's weights are now, if they have moved.
    network: for a folder that was tuned on a network of your own: this network. The call does not change it.
    task: the task, for a model of several tasks; or 'vision-efficient-tuning', as ModelScope calls the first
        argument.
    """
    if model is None and name != TASK:
        name, model = TASK, name
    if name != TASK:
        raise UnknownNameError('task', name, [TASK])
    if model is None:
        raise UserError('pipeline needs model=…: the output/ folder of a training run.')
    if network is not None:
        if backbone is not None or isinstance(model, Mapping):
            raise UserError('network is given: give one folder as model=…, and leave backbone=… out.')
        backbone = backbone_of_folder(model, network)
    return Classifier(model, device, backbone, None if task == TASK else task)
