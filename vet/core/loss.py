"""The contract of a loss, and the loss of an objective.

A loss is a callable: (outputs, targets) -> one loss for each image. The outputs and targets are those of
`Objective.for_loss`. A tensor (B, …) of more axes stands for its mean over these axes. One number for the
whole batch is refused, because vet weighs images: the last batch of a process may hold an image twice.

A loss class may take four arguments that vet offers:
    label_smoothing: of the setting train.label_smoothing.
    kind: the objective's kind of target, see Objective.targets.
    classes: the number of classes.
    counts: a function without arguments. The function returns the number of training images of each class,
        as a list, and the number of all training images.
Its attribute `targets` names the kinds of targets that the loss takes (see Objective.targets). Without the
attribute, the loss is tried on all kinds.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from vet.core.objective import Objective
from vet.errors import UserError, error_text, shown
from vet.failures import reason_of
from vet.registry import LOSSES, Entry

Counts = Callable[[], tuple[list[int], int]]


class Loss:
    """The loss of a config entry, for an objective: outputs (B, …), targets (B, …) -> losses (B,), float32.

    entry: None is the default loss of the objective.
    UserError if the loss does not take the objective's targets, or does not give one number for each image.
    """

    def __init__(
        self,
        entry: Mapping[str, object] | None,
        objective: Objective,
        label_smoothing: float = 0.0,
        counts: Counts | None = None,
        device: torch.device | None = None,
    ):
        given = dict(objective.loss if entry is None else entry)
        self.name = given['type']
        self.objective = objective
        plugin = LOSSES.find(self.name)
        _refuse_other_targets(plugin, self.name, objective)
        if label_smoothing:
            _refuse_smoothing(plugin, given, label_smoothing)
        # nn.Module takes any argument, and then refuses it
        named = inspect.signature(plugin).parameters
        offers = dict(label_smoothing=label_smoothing, counts=counts, kind=objective.targets)
        offers['classes'] = len(objective.names)
        _refuse_function(plugin, self.name)
        self._loss = LOSSES.build(given, **{key: value for key, value in offers.items() if key in named})
        if device is not None and isinstance(self._loss, torch.nn.Module):
            self._loss.to(device)
        self._try(device)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            losses = self._loss(*self.objective.for_loss(outputs, targets))
        except UserError:
            raise
        except Exception as error:  # a user's own loss may raise any error
            if reason_of(error):
                raise
            raise UserError(
                f'the loss {self.name!r} fails on outputs {tuple(outputs.shape)} and targets '
                f'{tuple(targets.shape)} of the objective {self.objective.given["type"]!r}: '
                f'{error_text(error)}. A loss takes these two tensors, and gives one number for each image.'
            ) from error
        if not isinstance(losses, torch.Tensor):
            raise UserError(
                f'the loss {self.name!r} gives {shown(losses)}; a loss gives a tensor, with one number for '
                'each image.'
            )
        if losses.shape[:1] != outputs.shape[:1]:
            raise UserError(
                f'the loss {self.name!r} gives a tensor of shape {tuple(losses.shape)} for {len(outputs)} '
                'images; a loss gives one number for each image. Use reduction="none".'
            )
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    def refuse_mixtures(self, device: torch.device | None = None) -> None:
        """UserError if the loss takes no mixtures of targets: shares of classes, mixup and cutmix."""
        try:
            self._try(device, self.objective.mixed_examples())
        except UserError as error:
            raise UserError(
                f'the loss {self.name!r} takes no mixtures of targets, which shares of classes, mixup and '
                f'cutmix are. Choose another train.loss, such as {self.objective.loss["type"]!r}. ({error})'
            ) from error

    def _try(self, device: torch.device | None, targets: np.ndarray | None = None) -> None:
        """Computes the loss of a few made-up images. UserError if that fails."""
        made, usual = self.objective.examples_for_loss()
        targets = usual if targets is None else targets
        outputs = torch.as_tensor(made, dtype=torch.float32, device=device).requires_grad_()
        given = torch.as_tensor(targets, device=device)
        losses = self(outputs, given.float() if given.is_floating_point() else given)
        if not losses.requires_grad:
            raise UserError(
                f'the loss {self.name!r} has no gradient, so that nothing would train. Compute it from the '
                'outputs with operations of torch, without detach() and numpy().'
            )


def kinds_of(plugin: object) -> tuple[str, ...] | None:
    """The kinds of targets that a loss or a metric names. None: the plugin names none."""
    kinds = getattr(plugin, 'targets', None)
    return (kinds,) if isinstance(kinds, str) else kinds


def _refuse_other_targets(plugin: object, name: str, objective: Objective) -> None:
    kinds = kinds_of(plugin)
    if kinds is None or objective.targets in kinds:
        return
    fitting = [other for other in LOSSES.names() if objective.targets in (kinds_of(LOSSES.find(other)) or ())]
    raise UserError(
        f'the loss {name!r} is for targets that are {" or ".join(kinds)}, but a target of the objective '
        f'{objective.given["type"]!r} is {objective.targets}. Losses for such targets: {", ".join(fitting)}.'
    )


def _refuse_function(plugin: object, name: str) -> None:
    """UserError for a function that takes outputs and targets, as metrics do."""
    if not inspect.isfunction(plugin):
        return
    needed = [
        key
        for key, each in inspect.signature(plugin).parameters.items()
        if each.default is inspect.Parameter.empty
    ]
    if len(needed) == 2:
        raise UserError(
            f'the loss {name!r} is a function of {needed[0]} and {needed[1]}; a loss is a class. Write the '
            'function as the method __call__(self, outputs, targets) of a class, and register the class.'
        )


def _refuse_smoothing(plugin: Any, given: Entry, label_smoothing: float) -> None:
    if 'label_smoothing' not in inspect.signature(plugin).parameters:
        raise UserError(
            f'train.label_smoothing is {label_smoothing:g}, but the loss {given["type"]!r} smooths no '
            'labels. Set train.label_smoothing to 0, or choose another train.loss.'
        )
    if given.get('label_smoothing', label_smoothing) != label_smoothing:
        raise UserError(
            f'train.label_smoothing is {label_smoothing:g}, but train.loss.label_smoothing is '
            f'{given["label_smoothing"]:g}; give one of them.'
        )
