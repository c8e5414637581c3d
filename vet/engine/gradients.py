"""Checks that trained parameters have a gradient. A tuner that nothing reads would train nothing, in silence.

Only learner.py imports this file.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from vet.core.multitask import Classifier
from vet.core.tuner import Tuner
from vet.errors import TrainingError
from vet.log import warn

# in this many steps a parameter must get a gradient that is not zero; behind a factor of zeros, it needs two
STEPS = 10
LEAST = 3  # fewer steps say nothing


class GradientWatch:
    """Looks at the gradients of the first steps. Changes nothing.

    says: whether this process prints warnings. steps: the number of steps of the training.
    """

    def __init__(self, model: Classifier, says: bool, steps: int):
        self._model = model
        self._says = says
        self._left = min(STEPS, steps) if steps >= LEAST else 0
        self._unseen: set[str | None] = set(model.tasks)
        self._moved: dict[str, torch.Tensor] = {}  # parameter -> whether a gradient was not zero

    def look(self, parameters: Mapping[str, nn.Parameter], tasks: set[str | None]) -> None:
        """Call this after the backward pass of a step with images of `tasks`.

        TrainingError after the first step if parameters of a tuner have no gradient. TrainingError after ten
        steps if a tuner got only zeros while others train. A warning if some parameters got only zeros, and
        if a tuner says why some of its parameters have no gradient (`Tuner.no_gradient`).
        """
        for tuner, trained in self._tuners(parameters, self._unseen & tasks):
            missing = [name for name, parameter in trained if parameter.grad is None]
            if missing and (tuner.no_gradient is None or len(missing) == len(trained)):
                raise TrainingError(
                    f'{_told(tuner, missing, trained)} get no gradient: no output depends on them. '
                    f'Choose other places with at=…, or, in a tuner of your own, say why in `no_gradient`.'
                )
            if missing:
                self._say(
                    f'{_told(tuner, missing, trained)} get no gradient and do not change: '
                    f'{tuner.no_gradient}.'
                )
        self._unseen -= tasks
        if self._left:
            self._count(parameters)

    def _count(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                moved = parameter.grad.detach().any()
                self._moved[name] = moved | self._moved[name] if name in self._moved else moved
        self._left -= 1
        if self._left or not self._moved:
            return
        flags = torch.stack(list(self._moved.values())).tolist()
        still = {parameters[name] for name, moved in zip(self._moved, flags) if not moved}
        for tuner, trained in self._tuners(parameters, self._model.tasks) if any(flags) else ():
            zeros = [name for name, parameter in trained if parameter in still]
            if zeros and len(zeros) == len(trained) and tuner.no_gradient is None:
                raise TrainingError(
                    f'{_told(tuner, zeros, trained)} got only zeros as gradient in the first steps, while '
                    'others train: no output of the network depends on them. Choose other places with '
                    'at=…, or, in a tuner of your own, say why in `no_gradient`.'
                )
            if zeros:
                self._say(
                    f'{_told(tuner, zeros, trained)} got only zeros as gradient in the first steps, and may '
                    'never train.'
                )

    def _tuners(
        self, parameters: Mapping[str, nn.Parameter], tasks: Iterable[str | None]
    ) -> Iterator[tuple[Tuner, list[tuple[str, nn.Parameter]]]]:
        """Each tuner of the tasks that trains now, with the names and parameters that train."""
        now = set(parameters.values())
        for tuner in (tuner for task in tasks for tuner in self._model.for_task(task).tuners):
            if trained := [(name, parameter) for name, parameter in tuner.trainable() if parameter in now]:
                yield tuner, trained

    def _say(self, text: str) -> None:
        if self._says:
            warn(f'warning: {text}')


def _told(tuner: Tuner, names: list[str], trained: list) -> str:
    listed = ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
    return f'{len(names)} of the {len(trained)} tensors that {type(tuner).__name__} trains ({listed})'
