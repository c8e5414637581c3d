"""Opened: a model in memory, ready to answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vet.config import Views
from vet.core.backbone import Backbone
from vet.core.model import ImageClassifier
from vet.core.objective import Answer, Objective
from vet.hub.model_folder import architecture, read_configuration
from vet.hub.modelscope import is_modelscope
from vet.pipelines import Classifier, Options, Seen, told
from vet.serve.sources import Mark

MODULE_BYTES = 4096  # of Python objects for each module of a network, about


class Opened:
    """A model folder in memory.

    lane: the key of the models that share a worker. Models on one backbone share a worker.
    version: the first part of a sha256 of the model's numbers.
    """

    def __init__(self, name: str, folder: Path, mark: Mark, classifier: Classifier, lane: str):
        self.name = name
        self.mark = mark
        self.lane = lane
        self.classifier = classifier
        self.version = _version(folder, mark)
        self.metrics = _metrics(folder)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks. Empty for a model of one task."""
        return [task for task in self.classifier.model.tasks if task is not None]

    def for_task(self, task: str | None) -> ImageClassifier:
        """The classifier of a task. UserError for an unknown task."""
        return self.classifier.model.for_task(task)

    def objective(self, task: str | None) -> Objective:
        return self.for_task(task).objective

    def mixes(self, task: str | None) -> bool:
        """Whether the images of this model may be in one forward with images of other models.

        `TunedModel` decides whether the tuners allow this too.
        """
        return task is None and not self.objective(task).dense and self.classifier.views(task) == Views()

    def seen(self, image: object, task: str | None, number: int) -> Seen:
        """An image as the network takes it. DataError for an image that cannot be read."""
        return self.classifier.seen_in_size(image, task, number)

    def answers(self, batch: Sequence[Seen], options: Sequence[Options]) -> list[Answer]:
        """The answers of `pipeline` for these images as one batch."""
        return self.classifier.answers(batch, options)

    def example(self) -> list[Answer]:
        """The answers for made-up outputs of the model. Empty for a model of several tasks."""
        if self.tasks:
            return []
        objective = self.objective(None)
        outputs = torch.from_numpy(objective.example_outputs()).float()
        return told(objective, outputs, [Options()] * len(outputs))

    def describe(self) -> dict[str, Any]:
        """Facts about the model for clients."""
        described = {task: _described(classifier) for task, classifier in self.classifier.model.tasks.items()}
        several = dict(tasks=described) if self.tasks else described[None]
        return dict(name=self.name, version=self.version, metrics=self.metrics, **several)


def bytes_of(module: nn.Module, shared: Backbone | None) -> int:
    """The memory of a model in bytes, without the tensors of the backbone that it shares."""
    there = {id(tensor) for tensor in (*shared.parameters(), *shared.buffers())} if shared else set()
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    numbers = sum(each.numel() * each.element_size() for key, each in tensors.items() if key not in there)
    return numbers + MODULE_BYTES * sum(1 for _ in module.modules())


@dataclass(frozen=True)
class Need:
    """The backbone that a folder needs. Folders of one key can share a backbone. size: of images."""

    key: str
    identity: Mapping[str, Any]
    size: tuple[int, int] | None


def backbone_of(folder: Path) -> Need | None:
    """The backbone that a folder can share with others. None if the model cannot share."""
    if is_modelscope(folder):
        return None
    configuration = read_configuration(folder)
    if configuration['model'].get('tasks'):
        return None
    identity = configuration['model']['backbone']
    size = (configuration.get('preprocessing') or {}).get('size')
    key = json.dumps([architecture(identity), identity.get('sha256'), size], sort_keys=True)
    return Need(key, identity, tuple(size) if isinstance(size, list) else None)


def _described(classifier: ImageClassifier) -> dict[str, Any]:
    return dict(
        objective=classifier.objective.given['type'],
        labels=classifier.objective.names,
        size=list(classifier.backbone.preprocessing.size),
        backbone=str(classifier.backbone.identity.get('name', classifier.backbone.identity['type'])),
        tuners=[type(tuner).__name__ for tuner in classifier.tuners],
    )


def _version(folder: Path, mark: Mark) -> str:
    if not is_modelscope(folder):
        for sha256 in (read_configuration(folder).get('sha256') or {}).values():
            return str(sha256)[:12]
    return f'{abs(hash(mark)):016x}'[:12]


def _metrics(folder: Path) -> dict[str, float]:
    given = {} if is_modelscope(folder) else read_configuration(folder).get('metrics') or {}
    return {str(name): value for name, value in given.items() if isinstance(value, int | float)}
