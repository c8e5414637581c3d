"""Calls the hooks of a config (`custom_hooks`) at the points of a run. See vet/hooks/base.py."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from vet.config import Plugin, Settings
from vet.errors import TrainingError, UserError
from vet.registry import HOOKS

Made = TypeVar('Made')
State = dict[str, Any]  # of a hook, as values of JSON
POINTS = (
    'before_run',
    'after_run',
    'before_train_epoch',
    'after_train_epoch',
    'before_train_iter',
    'after_train_iter',
    'before_val_epoch',
    'after_val_epoch',
    'before_test_epoch',
    'after_test_epoch',
)
REMEDIES = dict(
    val='Give dataset.val, or evaluation.select="best", which holds images out of train; or use '
    'after_train_epoch.',
    test='Give dataset.test, or use after_run.',
)


class Runner:
    """The interface between a hook and a run: facts about the run, and requests to the run.

    epoch, iter: the epochs and the optimizer steps that are done, as in mmengine.
    max_epochs, max_iters: those of the whole run.
    summary: the results, after the run. Before, it is empty.
    """

    def __init__(self, model: nn.Module, settings: Settings, accelerator: Accelerator, max_iters: int = 0):
        self.model = model
        self.settings = settings
        self.accelerator = accelerator
        self.max_epochs = settings.train.max_epochs
        self.max_iters = max_iters
        self.epoch = self.iter = 0
        self.work_dir = Path()
        self.summary: Mapping[str, object] = {}
        self.record: Callable[..., None] = lambda **values: None  # writes numbers into the log of the run
        self.asks = dict(stop=False, save=False)

    def log(self, **numbers: float) -> None:
        """Writes numbers into log.jsonl, TensorBoard and the trackers, at the present step.

        Only the main process writes. UserError for a value that is no number.
        """
        for name, value in numbers.items():
            if name in ('step', 'epoch'):
                raise UserError(f'the name {name!r} belongs to every record of the log; give another name.')
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                numbers[name] = value.item()
            elif not isinstance(value, int | float):
                raise UserError(f'log({name}={value!r}) gives no number; give a number or a tensor of one.')
        self.record(**numbers)

    def stop(self) -> None:
        """Ends the training after this step. The run is tested and written as after its last step."""
        self.asks['stop'] = True

    def save(self) -> None:
        """Writes a checkpoint after this step."""
        self.asks['save'] = True

    def asked(self, what: str) -> bool:
        """Whether a hook of any process asked to 'stop' or to 'save' since the last answer."""
        asked = self.asks[what]
        self.asks[what] = False
        if self.accelerator.num_processes > 1:
            count = torch.tensor(float(asked), device=self.accelerator.device)
            asked = self.accelerator.reduce(count, 'sum').item() > 0
        return asked


class Hooks:
    """The hooks of a run, in the order of the config.

    UserError for an entry that no hook can be made from, for a hook without any point, and for a hook with
    a point that vet does not have.
    """

    def __init__(self, entries: Sequence[Plugin], runner: Runner):
        self.runner = runner
        self._hooks: list[tuple[str, Any]] = []
        for entry in entries:
            self.add(str(entry.get('type')), HOOKS.build(dict(entry)))

    def add(self, name: str, hook: object) -> None:
        """Adds a hook behind the others."""
        if unknown := _unknown_points(hook):
            raise UserError(
                f'the hook {name!r} has the method {unknown[0]!r}, which no run calls; the points are '
                f'{", ".join(POINTS)}. Use one of these points. If the method is no point, its name must not '
                'begin with before_ or after_.'
            )
        if not any(callable(getattr(hook, point, None)) for point in POINTS):
            raise UserError(
                f'the hook {name!r} has none of the points {", ".join(POINTS)}; write at least one.'
            )
        self._hooks.append((name, hook))

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def call(self, point: str, **offered: object) -> None:
        """Calls `point` of each hook that has the point, with those of `offered` that the hook takes."""
        for name, hook in self._hooks:
            method = getattr(hook, point, None)
            if method is not None:
                self._try(name, point, lambda: method(self.runner, **_taken(method, offered)))  # noqa: B023

    def uncalled(self, missing: Sequence[str]) -> list[str]:
        """A sentence for each hook with a point that this run never calls.

        missing: 'val' and 'test', if the run has no such images.
        """
        sentences = []
        for split, (name, hook) in product(missing, self._hooks):
            points = (f'before_{split}_epoch', f'after_{split}_epoch')
            if unused := [point for point in points if _has_own(hook, point)]:
                images = dict(val='validation', test='test')[split]
                sentences.append(
                    f'the run has no {images} images, so {" and ".join(unused)} of the hook {name!r} is '
                    f'never called. {REMEDIES[split]}'
                )
        return sentences

    def asked(self, what: str) -> bool:
        """Whether a hook of any process asked for 'stop' or 'save'."""
        return bool(self) and self.runner.asked(what)

    def state(self) -> list[State | None]:
        """The state of each hook, as values of JSON. None for a hook without a state."""
        return [
            self._try(name, 'state_dict', lambda: _plain(hook.state_dict()))  # noqa: B023, called at once
            if hasattr(hook, 'state_dict')
            else None
            for name, hook in self._hooks
        ]

    def restore(self, states: Sequence[State | None]) -> None:
        """Restores `state`. A checkpoint without states changes nothing."""
        for (name, hook), state in zip(self._hooks, states):
            if state is not None:
                self._try(name, 'load_state_dict', lambda: hook.load_state_dict(state))  # noqa: B023

    def _try(self, name: str, point: str, function: Callable[[], Made]) -> Made:
        try:
            return function()
        except Exception as error:  # a user's own hook may raise any error
            text = (
                str(error).rstrip('.') if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
            )
            raise TrainingError(
                f'the hook {name!r} fails at {point}, after step {self.runner.iter}: {text}. Correct the '
                'hook, or take it out of custom_hooks and begin anew. What was saved before is not lost.'
            ) from error


def _taken(method: Callable, offered: Mapping[str, object]) -> dict[str, object]:
    """The arguments that the method has."""
    parameters = inspect.signature(method).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


def _has_own(hook: object, point: str) -> bool:
    """Whether the class of the hook writes the point. The points of the base class do nothing."""
    classes = type(hook).__mro__
    return any(point in vars(kind) for kind in classes if kind.__module__ != 'vet.hooks.base')


def _unknown_points(hook: object) -> list[str]:
    """The methods with names like those of points that no run calls. Those of mmengine's base class do not
    count.
    """
    written = [
        name
        for kind in type(hook).__mro__
        if not kind.__module__.startswith('mmengine.')
        for name, value in vars(kind).items()
        if callable(value)
    ]
    return [name for name in written if name.startswith(('before_', 'after_')) and name not in POINTS]


def _plain(state: object) -> State:
    """The state as JSON gives it back. A TypeError names what JSON cannot hold."""
    return json.loads(json.dumps(state))
