"""MultiTaskClassifier: several classifiers whose tuners share parameters. Each classifier has its frozen
weights and its head.

W_t = W0_t + B A for every task t. All tasks train one A and B, or one A and a B each.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vet.core.backbone import Backbone, merged_error
from vet.core.caches import clear_caches
from vet.core.containers import ModuleDictOf
from vet.core.model import ImageClassifier, load_into
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError, UserError
from vet.patterns import fits


class SeveralTasks(nn.Module):
    """A module with one classifier for each of several tasks, by name."""

    _tasks: 'ModuleDictOf[ImageClassifier] | dict[str, ImageClassifier]'

    @property
    def tasks(self) -> dict[str | None, ImageClassifier]:
        """{task: its ImageClassifier}"""
        return dict(self._tasks.items())

    @property
    def classes(self) -> dict[str | None, list[str]]:
        """{task: its class names}"""
        return {name: model.classes for name, model in self.tasks.items()}

    def for_task(self, task: str | None) -> ImageClassifier:
        """The classifier of a task. UserError for an unknown name."""
        if task not in self._tasks:
            raise UnknownNameError('task', task, self._tasks, 'The model has several: name one with task=….')
        return self.tasks[task]


class MultiTaskClassifier(SeveralTasks):
    """Normalised images (B, 3, H, W) of one task, and its name -> logits (B, K_task).

    tasks: {name: its classifier}.
    shared: the parameters of the tuners that all tasks share: a regular expression for their whole names,
        'tuners.0.deltas.<site>.A'. Every task must have these parameters, with one shape.
    Each task has its own thawed values, and its own parameters that a delta lists in `bound_to_weight`
    (DoRA's m, GPS's values). The parameters of one task have names such as 'tuners.<task>.0.deltas…' or
    'head.<task>.…'.
    """

    def __init__(self, tasks: Mapping[str, ImageClassifier], shared: str = '.*'):
        super().__init__()
        self._tasks = ModuleDictOf(tasks)
        first, *others = (_deltas(model) for model in tasks.values())
        bound = {
            f'tuners.{i}.{name}'
            for model in tasks.values()
            for i, tuner in enumerate(model.tuners)
            for name in tuner.bound_to_weights()
        }
        self._shared = [name for name in first if fits(shared, name) and name not in bound]
        misfit = [
            name
            for name in self._shared
            for other in others
            if name not in other or _parameter(*other[name]).shape != _parameter(*first[name]).shape
        ]
        require_match(shared, next(iter(tasks.values())))
        if misfit or (first and not self._shared):
            wrong = (
                f'{misfit[0]!r}, which is not of one shape in every task'
                if misfit
                else f'nothing that tasks can share: {min(bound)!r} belongs to one frozen weight'
            )
            raise UserError(
                f'model.shared={shared!r} matches {wrong}; give a regular expression of names that all tasks '
                'have, such as ".*" or ".*A".'
            )
        for other in others:
            for name in self._shared:
                holder, leaf = other[name]
                setattr(holder, leaf, _parameter(*first[name]))

    @property
    def tuners(self) -> list[Tuner]:
        """The tuners of every task."""
        return [tuner for model in self.tasks.values() for tuner in model.tuners]

    def forward(self, images: torch.Tensor, task: str) -> torch.Tensor:
        """images (B, 3, H, W) -> logits (B, K_task), float32"""
        return self._tasks[task](images)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train. A shared parameter occurs once."""
        return {
            self._name(task, name): p
            for task, model in self.tasks.items()
            for name, p in model.trainable().items()
        }

    def trained_state(self) -> dict[str, torch.Tensor]:
        """All numbers that training made, by their names in files."""
        return {
            self._name(task, name): value
            for task, model in self.tasks.items()
            for name, value in model.trained_state().items()
        }

    def training_state(self) -> dict[str, torch.Tensor]:
        """The state that only further training needs."""
        return {
            f'{task}.{name}': value
            for task, model in self.tasks.items()
            for name, value in model.training_state().items()
        }

    def load_trained_state(self, state: Mapping[str, torch.Tensor], source: str = 'the file') -> None:
        """Copies the tensors of `trained_state` into this model.

        If names or shapes differ, nothing is loaded. UserError while the model of a task is merged.
        """
        if any(model.is_merged for model in self.tasks.values()):
            raise merged_error('loaded: the merged weights would not change')
        load_into(self.trained_state(), state, source)
        clear_caches(self.modules())

    def count(self) -> dict[str, int]:
        """Numbers of parameters, as in ImageClassifier. A shared parameter counts once."""
        trainable = self.trainable()
        head = sum(p.numel() for name, p in trainable.items() if name.startswith('head.'))
        total = sum(p.numel() for p in trainable.values())
        of_backbones = {p for model in self.tasks.values() for p in model.backbone.parameters()}
        backbone = sum(p.numel() for p in of_backbones)
        return dict(
            tuners=total - head,
            head=head,
            trainable=total,
            backbone=backbone,
            total=sum(p.numel() for p in self.parameters()),
        )

    def _name(self, task: str | None, name: str) -> str:
        if name in self._shared:
            return name
        kind, _, rest = name.partition('.')
        return f'{kind}.{task}.{rest}'


def require_match(shared: str, model: ImageClassifier) -> None:
    """UserError if the pattern `shared` fits no parameter of the tuners. '.*' needs no parameter."""
    names = list(_deltas(model))
    if shared != '.*' and not any(fits(shared, name) for name in names):
        known = f'the names are {names[:3]} …' if names else 'the tuners add no parameters'
        raise UserError(
            f'model.shared={shared!r} matches nothing: {known}. Give a regular expression for whole names, '
            'such as ".*" or ".*A"; for one task, leave model.shared out.'
        )


def _deltas(model: ImageClassifier) -> dict[str, tuple[nn.Module, str]]:
    """The name in files of each parameter of the deltas -> the module that holds the parameter, and its name
    there.
    """
    places = {}
    for i, tuner in enumerate(model.tuners):
        for path, _ in tuner.deltas.named_parameters():
            owner, _, leaf = path.rpartition('.')
            places[f'tuners.{i}.deltas.{path.replace("/", ".")}'] = tuner.deltas.get_submodule(owner), leaf
    return places


def _parameter(holder: nn.Module, name: str) -> nn.Parameter:
    return getattr(holder, name)


Classifier = ImageClassifier | MultiTaskClassifier


def share_equal_weights(backbones: Sequence[Backbone]) -> None:
    """Makes untouched backbones with the same weights share their tensors, so that together they use the
    memory of one backbone.
    """
    first: dict[str, Backbone] = {}
    for backbone in backbones:
        other = first.setdefault(backbone.identity['sha256'], backbone)
        for name, module in backbone.network.named_modules():
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for leaf, _ in tensors:  # a module without tensors may be another pool
                setattr(module, leaf, getattr(other.network.get_submodule(name), leaf))
