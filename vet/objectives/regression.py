"""The objective of images that have one or more measured numbers: a share, an age, a count, a distance."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval

from vet.core.objective import Answer, Objective, State
from vet.core.permits import NOTHING, Rule, lists, number, permits
from vet.errors import UserError
from vet.registry import OBJECTIVES
from vet.targets import as_numbers

MOST = 1_000  # numbers of an image
LARGEST = 1e15  # of a mean or a standard deviation: squares of such numbers are finite in float32
DIGITS = 1e4  # most |mean| / std: float32 has 7 digits, so that an error of std / 1,000 is seen
FINITE = number(-1e30, 1e30)
UNITS = Rule(
    lambda value: (
        isinstance(value, Mapping)
        and len(value) <= MOST
        and all(isinstance(text, str) and len(text) <= 100 for item in value.items() for text in item)
    ),
    'a dict of names, each with a short text',
)


@OBJECTIVES.register_module()
@permits(
    units=NOTHING | UNITS,
    mean=NOTHING | lists(FINITE, most=MOST),
    std=NOTHING | lists(number(1e-30, 1e30), most=MOST),
)
class Regression(Objective):
    """One or more numbers for each image, in the user's units.

    A target is a number, a list of numbers, or {name: number}. Inside, targets are standardised: the head
    learns (target - mean) / std, over the training images. The model's outputs, the metrics and the answers
    are in the user's units. `pipeline` returns {name: number}.
    units: {name: unit}, such as dict(road='%'), for tables and the model card.
    mean, std: one number for each name, as vet found them. A model folder holds them.
    UserError if a number is the same in all training images, or if float32 cannot hold the number well.
    """

    targets = 'numbers'
    loss = dict(type='MSELoss')
    metrics = ('mae', 'rmse', 'r2')
    watched = 'mae'
    found = ('mean', 'std')
    about = 'a model that estimates numbers of an image'
    hub_task = None

    mean_T: torch.Tensor
    std_T: torch.Tensor

    def __init__(
        self,
        names: Sequence[str],
        units: dict[str, str] | None = None,
        mean: list[Annotated[float, Interval(ge=-LARGEST, le=LARGEST)]] | None = None,
        std: list[Annotated[float, Interval(ge=1 / LARGEST, le=LARGEST)]] | None = None,
    ):
        super().__init__(names)
        self.units = dict(units or {})
        if unknown := sorted(set(self.units) - set(self.names)):
            raise UserError(
                f'model.objective.units has {unknown[0]!r}, but the numbers are {", ".join(self.names)}. '
                'Give units for these names.'
            )
        for key, values in (('mean', mean), ('std', std)):
            if values is not None and len(values) != len(self.names):
                raise UserError(
                    f'model.objective.{key} has {len(values)} numbers, but the targets are '
                    f'{len(self.names)}: {", ".join(self.names)}. Give one for each, or leave mean and std '
                    'out: then vet computes them.'
                )
        if (mean is None) != (std is None):
            raise UserError('model.objective has one of mean and std; give both, or leave both out.')
        self._is_fitted = mean is not None
        self._set(mean or [0.0] * len(self.names), std or [1.0] * len(self.names))

    def _set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for key, values in (('mean_T', mean), ('std_T', std)):
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32), persistent=False)
        self._mean, self._std = [float(value) for value in mean], [float(value) for value in std]

    def check(self, target: object, name: Callable[[], str]) -> tuple[float, ...]:
        return as_numbers(target, self.names, name)

    def fit(self, targets: Callable[[], Sequence[object]]) -> None:
        if self._is_fitted:
            return
        values_NT = np.asarray(targets(), dtype=np.float64).reshape(-1, len(self.names))
        mean, std = values_NT.mean(0).tolist(), values_NT.std(0).tolist()
        for name, value, spread in zip(self.names, mean, std):
            if not spread > 1e-12 * max(1.0, abs(value)) or not math.isfinite(spread):
                raise UserError(
                    f'the number {name!r} is {value:g} in all {len(values_NT)} training images, so that '
                    'nothing can be learned. Correct the targets, or leave the number out.'
                )
            if abs(value) > DIGITS * spread:
                raise UserError(
                    f'the number {name!r} is {value:g} on average and varies by {spread:g} only. The network '
                    f'computes with 7 digits. Subtract a constant, such as {value:.2g}, from the targets.'
                )
            if not 1 / LARGEST <= spread <= LARGEST:
                raise UserError(
                    f'the number {name!r} varies by {spread:g}; allowed: {1 / LARGEST:g} to {LARGEST:g}. '
                    'Give the targets in another unit.'
                )
        self._set(mean, std)
        self._is_fitted = True

    def finish(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * self.std_T + self.mean_T

    def for_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_T, std_T = (values.to(outputs.device) for values in (self.mean_T, self.std_T))
        return (outputs - mean_T) / std_T, (targets.float() - mean_T) / std_T

    def coded(self, targets: torch.Tensor) -> torch.Tensor:
        """The standardised numbers."""
        return self.for_loss(targets, targets)[1]

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean absolute error over the numbers of an image."""
        return (outputs - targets).abs().mean(1)

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.mean(0)

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        return [dict(zip(self.names, values)) for values in outputs.float().tolist()]

    def rows(self, answer: Answer) -> list[tuple[str, str]]:
        return [(name, f'{value:.4g} {self.units.get(name, "")}'.rstrip()) for name, value in answer.items()]

    @property
    def columns(self) -> list[str]:
        return self.names

    def flat(self, answer: Answer) -> Answer:
        return answer

    def refuse_threshold(self) -> None:
        raise UserError('the model gives numbers, which have no score. Leave the threshold out.')

    def words(self, target: Any) -> str:
        return ', '.join(
            f'{name} {number}' for name, number in self.rows(dict(zip(self.names, map(float, target))))
        )

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The mean of |error| / std over the numbers of an image."""
        return (np.abs(scores - targets) / np.array(self._std)).mean(1)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(0)
        shape = (6, len(self.names))
        values = [draw.standard_normal(shape) * self._std + self._mean for _ in range(2)]
        return values[0], values[1]

    def state(self) -> State:
        return dict(mean=self._mean, std=self._std) if self._is_fitted else {}
